"""How many servers a run should have: rules with numbers worked by hand, and properties on a simple model of a run."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_operator.autoscale import (
    EARLY,
    FIRST_PAUSE,
    MEASURED,
    MOST_FACTOR,
    NO_ROOM,
    PACE_S,
    RETRY,
    SETTLE,
    SUSTAINED,
    Change,
    Choice,
    History,
    Pending,
    Sample,
    choose_servers,
)

LEAST, MOST = 1, 16
SHARES = st.floats(0.0, 1.0)


def measured(wait: float, idle: float = 0.0, *, steps: int = SUSTAINED, changes: tuple[Change, ...] = ()) -> History:
    """A history in which every step was alike."""
    last = changes[-1].step if changes else 0
    return History(0.0, last + SETTLE + steps, (Sample(wait, idle),) * steps, 0, changes)


def chosen(history: History, servers: int, *, now: float = 1e6, pending: Pending | None = None) -> Choice | None:
    return choose_servers(history, now, servers=servers, least=LEAST, most=MOST, pending=pending or Pending())


def change(before: int, after: int, cause: str, **measures: float) -> Change:
    return Change(0.0, 100, before, after, cause, **measures)  # type: ignore[arg-type]  # a literal


def test_a_waiting_trainer_gets_as_many_servers_as_would_end_the_wait() -> None:
    """With 4 servers a step is 1/3 wait: their throughput must be 1.5 times as high."""
    choice = chosen(measured(1 / 3), 4)
    assert choice == Choice(6, "TrainerWaits", "the trainer waited for rollouts for 33.3% of a step")


def test_one_change_at_most_doubles_the_number_or_takes_a_third() -> None:
    assert (more := chosen(measured(0.9), 3)) is not None
    assert more.servers == 3 * MOST_FACTOR
    assert (fewer := chosen(measured(0.0, 0.95), 8)) is not None
    assert (fewer.servers, fewer.cause) == (6, "ServersIdle")


def test_idle_servers_leave_room_for_a_tenth_more() -> None:
    """Of 10 servers 7 would do: 7.7 is rounded up."""
    choice = chosen(measured(0.0, 0.3), 10)
    assert choice == Choice(
        8, "ServersIdle", "servers had no request for 30% of the time, and the trainer waited for 0.0% of a step"
    )


def test_busy_servers_are_tried_without_a_fifth_of_them() -> None:
    assert (choice := chosen(measured(0.01, 0.1), 10)) is not None
    assert (choice.servers, choice.cause) == (8, "FewerTried")


@pytest.mark.parametrize("wait", [0.015, 0.02, 0.03])
def test_between_the_two_bounds_nothing_changes(wait: float) -> None:
    assert chosen(measured(wait, 0.9), 8) is None


def test_a_clear_wait_needs_few_steps_and_everything_else_many() -> None:
    assert chosen(measured(0.0, 0.9, steps=SUSTAINED - 1), 8) is None
    assert chosen(measured(0.05, steps=MEASURED - 1), 8) is None
    assert chosen(measured(0.05, steps=MEASURED), 8) is not None
    assert chosen(measured(0.3, steps=EARLY - 1), 8) is None
    assert chosen(measured(0.3, steps=EARLY), 8) is not None


def test_steps_after_a_change_and_with_missing_servers_are_not_measured() -> None:
    history = History(0.0)
    for step in range(1, SETTLE + 1):
        history = history.reported(step, Sample(0.5, 0.0), servers=4)
    assert history.samples == ()
    history = history.reported(SETTLE + 1, None, servers=4).reported(SETTLE + 2, Sample(0.5, 0.0), servers=4)
    assert len(history.samples) == 1
    assert history.reported(SETTLE + 2, Sample(0.5, 0.0), servers=4) == history  # the same report again
    assert history.changed(Choice(8, "TrainerWaits", ""), before=4, at_s=7.0).samples == ()


def test_a_rollback_forgets_what_was_measured() -> None:
    history = measured(0.5, changes=(change(4, 8, "TrainerWaits", wait=0.5),))
    assert history.reported(3, Sample(0.5, 0.0), servers=4) == History(0.0, 3, servers=4)


def test_changes_keep_their_distance_in_time() -> None:
    history = measured(0.5)
    assert chosen(history, 4, now=PACE_S - 1) is None
    assert chosen(history, 4, now=PACE_S) is not None


def test_an_increase_that_made_steps_hardly_faster_is_undone_and_not_repeated() -> None:
    """From 4 to 8 at a wait of 0.5, steps could be twice as fast; at 0.4 they are 1.2 times as fast."""
    increase = change(4, 8, "TrainerWaits", wait=0.5)
    choice = chosen(measured(0.4, steps=MEASURED, changes=(increase,)), 8)
    assert choice is not None
    assert (choice.servers, choice.cause) == (4, "NoGain")
    assert "20% faster, 100% were possible" in choice.message
    undone = change(8, 4, "NoGain", wait=0.4)
    again = measured(0.5, changes=(increase, undone))
    assert chosen(again, 4) is None
    assert chosen(replace(again, step=undone.step + FIRST_PAUSE), 4) is not None
    assert chosen(measured(0.7, changes=(increase, undone)), 4) is not None  # it waits much longer than then


def test_an_increase_with_a_quarter_of_the_possible_gain_stays() -> None:
    """From a wait of 0.5 to one of 0.375: 1.25 times as fast. It is still long, so the next increase follows."""
    choice = chosen(measured(0.375, steps=MEASURED, changes=(change(4, 8, "TrainerWaits", wait=0.5),)), 8)
    assert choice is not None
    assert (choice.servers, choice.cause) == (13, "TrainerWaits")


def test_an_increase_is_at_least_a_quarter() -> None:
    """Of 8 servers 8.5 would do; whether one more helps could not be told from chance."""
    assert (choice := chosen(measured(0.06), 8)) is not None
    assert choice.servers == 10


def test_a_mean_within_its_error_of_the_bound_changes_nothing() -> None:
    """Waits of 0 and 0.08 in turn: their mean 0.04 has an error of 0.012."""
    samples = (Sample(0.0, 0.0), Sample(0.08, 0.0)) * (MEASURED // 2)
    assert chosen(replace(measured(0.0), samples=samples), 8) is None
    assert chosen(replace(measured(0.0), samples=(*samples[2:], *(Sample(0.08, 0.0),) * 2)), 8) is not None


def test_a_decrease_that_made_the_trainer_wait_is_undone_and_not_repeated() -> None:
    decrease = change(8, 6, "FewerTried", idle=0.1)
    choice = chosen(measured(0.2, steps=MEASURED, changes=(decrease,)), 6)
    assert choice is not None
    assert (choice.servers, choice.cause) == (8, "TrainerWaitsAgain")
    undone = change(6, 8, "TrainerWaitsAgain", wait=0.2)
    again = measured(0.0, 0.1, changes=(decrease, undone))
    assert (fewer := chosen(again, 8)) is not None
    assert fewer.servers == 7  # 6 are known to be too few
    assert (later := chosen(replace(again, step=undone.step + FIRST_PAUSE), 8)) is not None
    assert later.servers == 7
    assert (light := chosen(measured(0.0, 0.6, changes=(decrease, undone)), 8)) is not None
    assert light.servers == 6  # the load has fallen since


def test_pauses_double() -> None:
    failures = (change(8, 7, "FewerTried"), change(7, 8, "TrainerWaitsAgain")) * 3
    history = measured(0.0, 0.0, changes=failures)
    for factor, expected in ((4, None), (4.01, 7)):
        choice = chosen(replace(history, step=round(100 + FIRST_PAUSE * factor) - (expected is None)), 8)
        assert (choice and choice.servers) == expected


def test_no_server_is_added_while_some_are_pending_and_these_are_given_back() -> None:
    pending = Pending(unschedulable=2, all=3, since_s=1000.0)
    assert chosen(measured(0.5), 8, now=1000.0 + NO_ROOM * PACE_S - 1, pending=pending) is None
    choice = chosen(measured(0.5), 8, now=1000.0 + NO_ROOM * PACE_S, pending=pending)
    assert choice == Choice(6, "NoRoom", "no node had room for 2 servers for 300 s")
    returned = measured(0.5, changes=(change(8, 6, "NoRoom"),))
    assert chosen(returned, 6, now=RETRY * PACE_S - 1) is None
    assert chosen(returned, 6, now=RETRY * PACE_S) is not None


def test_servers_in_a_queue_stay_there_while_the_trainer_waits_and_leave_it_when_it_does_not() -> None:
    waiting = Pending(all=2, queued=2)
    for wait in (0.5, 0.02):
        assert chosen(measured(wait, steps=SUSTAINED), 8, now=1e6, pending=waiting) is None
    text = "the trainer waited for 0.0% of a step: none of those in the queue is needed"
    assert chosen(measured(0.0, 0.9, steps=SUSTAINED), 8, now=1e6, pending=waiting) == Choice(6, "NotNeeded", text)


def test_an_increase_is_judged_by_the_servers_that_a_queue_has_admitted() -> None:
    history = measured(0.5, changes=(change(4, 8, "TrainerWaits", wait=0.5),))
    assert chosen(history, 8, now=1e6, pending=Pending(all=4, queued=4)) is None
    choice = chosen(history, 8, now=1e6, pending=Pending(all=2, queued=2))
    assert choice is not None
    assert (choice.servers, choice.cause) == (4, "NoGain")
    assert choice.message.startswith("6 servers instead of 4 made steps 0% faster, 50% were possible")


def test_what_another_number_of_servers_did_is_forgotten_but_not_the_changes() -> None:
    history = replace(measured(0.5, changes=(change(4, 8, "TrainerWaits", wait=0.5),)), servers=8)
    fewer = history.reported(history.step + 1, Sample(0.6, 0.0), servers=7)
    assert (fewer.samples, fewer.settling, fewer.changes) == ((), SETTLE - 1, history.changes)


def test_guaranteed_servers_are_never_given_back() -> None:
    assert chosen(History(0.0), LEAST, pending=Pending(1, 1, since_s=0.0)) is None
    assert (choice := chosen(History(0.0), 2, pending=Pending(2, 2, since_s=0.0))) is not None
    assert choice.servers == LEAST


def test_new_bounds_hold_at_once() -> None:
    choice = choose_servers(History(0.0), 0.0, servers=9, least=2, most=5, pending=Pending())
    assert choice == Choice(5, "OutOfBounds", "servers.autoscale allows 2 to 5")


@given(SHARES, SHARES, st.integers(1, 40), st.integers(1, 20), st.integers(0, 20), st.integers(0, 40))
def test_every_choice_is_within_the_bounds_and_a_change(
    wait: float, idle: float, servers: int, least: int, more: int, steps: int
) -> None:
    history = measured(wait, idle, steps=steps)
    choice = choose_servers(history, 1e6, servers=servers, least=least, most=least + more, pending=Pending())
    number = servers if choice is None else choice.servers
    assert least <= number <= least + more
    assert choice is None or choice.servers != servers


@given(SHARES, SHARES, SHARES, SHARES, st.integers(1, MOST))
def test_the_first_choice_is_monotone_in_wait_and_idle_share(
    wait: float, other_wait: float, idle: float, other_idle: float, servers: int
) -> None:
    def number(wait: float, idle: float) -> int:
        choice = chosen(measured(wait, idle), servers)
        return servers if choice is None else choice.servers

    low, high = sorted((wait, other_wait))
    little, much = sorted((idle, other_idle))
    assert number(low, idle) <= number(high, idle)
    assert number(wait, much) <= number(wait, little)


@dataclass(frozen=True)
class Run:
    """Training takes 1 per step, the generation of a batch ``work`` ÷ servers + ``latency``."""

    work: float
    latency: float = 0.0
    noise: float = 0.0  # standard deviation of the measured shares
    seed: int = 0

    def simulate(self, steps: int, *, start: int = 4) -> list[Change]:
        """The changes in a run of so many steps."""
        chance, number, history, now = random.Random(self.seed), start, History(0.0), 0.0
        changes: list[Change] = []
        for step in range(1, steps + 1):
            generation = self.work / number + self.latency
            seconds = max(1.0, generation)
            now += 60.0 * seconds
            shares = (1 - 1 / seconds, 1 - min(1.0, generation / seconds))
            wait, idle = (min(1.0, max(0.0, share + chance.gauss(0, self.noise))) for share in shares)
            history = history.reported(step, Sample(wait, idle), servers=number)
            choice = choose_servers(history, now, servers=number, least=LEAST, most=MOST, pending=Pending())
            if choice is not None:
                history = history.changed(choice, before=number, at_s=now)
                changes.append(history.changes[-1])
                number = choice.servers
        return changes


@settings(max_examples=25, deadline=None)
@given(
    st.floats(0.1, 30.0), st.sampled_from([0.0, 0.3, 0.9, 1.5]), st.sampled_from([0.0, 0.02, 0.05]),
    st.integers(0, 9), st.integers(1, MOST),
)  # fmt: skip
def test_a_steady_load_leads_to_few_changes(work: float, latency: float, noise: float, seed: int, start: int) -> None:
    """Some to find the number, and then two trials and their ends for each pause; pauses double."""
    changes = Run(work, latency, noise, seed).simulate(1000, start=start)
    assert len(changes) <= 20
    assert len([one for one in changes if one.step > 500]) <= 8


@settings(max_examples=20, deadline=None)
@given(st.floats(0.2, 14.0), st.floats(0.2, 14.0))
def test_more_work_leads_to_at_least_as_many_servers_up_to_a_trial(one: float, other: float) -> None:
    def final(work: float) -> int:
        changes = Run(work).simulate(200)
        return changes[-1].after if changes else 4

    low, high = sorted((one, other))
    assert final(low) <= final(high) + 1


@pytest.mark.parametrize("work", [0.5, 2.0, 6.0, 11.0])
def test_the_number_ends_where_the_trainer_does_not_wait(work: float) -> None:
    changes = Run(work).simulate(150)
    number = changes[-1].after if changes else 4
    assert work / number <= 1 / (1 - 0.03)
    assert number <= max(1, work * 1.35 + 1)
