"""Samples are as fresh as possible: the pacer's arithmetic, and simulated runs of the real executor."""

from __future__ import annotations

import pytest

from areal_trainer.rollout.pacing import Pacer
from hack.testbed.simulated_rollout import Workload, simulate


def step(pacer: Pacer, *, at: float, unfinished: int, waited: float = 0.0) -> None:
    pacer.asked(at, running=unfinished)
    pacer.delivered(at + waited, running=unfinished)


def test_a_run_starts_with_the_batch_in_training_and_the_next() -> None:
    pacer = Pacer(batch_size=8, max_staleness=4)
    assert (pacer.limit(0), pacer.limit(3)) == (16, 40)


def test_a_wait_of_a_tenth_of_the_training_time_adds_a_twentieth_of_a_batch() -> None:
    pacer = Pacer(batch_size=100, max_staleness=2)
    step(pacer, at=0.0, unfinished=100)
    step(pacer, at=1.0, unfinished=50, waited=0.1)
    assert pacer.wanted == 5  # 0.5 · 100 · (0.1 − 0.01) = 4.5
    assert pacer.training_s == 1.0


def test_the_reserve_shrinks_while_the_trainer_does_not_wait() -> None:
    pacer = Pacer(batch_size=100, max_staleness=2)
    step(pacer, at=0.0, unfinished=100)
    step(pacer, at=1.0, unfinished=50, waited=0.1)
    for number in range(2, 12):  # 0.5 each
        step(pacer, at=number + 0.1, unfinished=50)
    assert pacer.wanted == 0


def test_a_single_stall_adds_little_and_a_second_one_counts_in_full() -> None:
    pacer = Pacer(batch_size=100, max_staleness=3)
    step(pacer, at=0.0, unfinished=100)
    step(pacer, at=1.0, unfinished=100, waited=0.9)
    assert pacer.wanted == 12  # 0.5 · 100 · (0.25 − 0.01)
    step(pacer, at=2.9, unfinished=100, waited=0.2)
    assert pacer.wanted == 22  # and 0.5 · 100 · (0.2 − 0.01)


def test_the_reserve_is_not_larger_than_what_can_be_unfinished() -> None:
    pacer = Pacer(batch_size=16, max_staleness=4)
    for number in range(8):
        step(pacer, at=float(2 * number), unfinished=3, waited=1.0)
    assert pacer.wanted == 3  # their deviation is 0


def test_waits_for_the_staleness_bound_are_not_counted() -> None:
    pacer = Pacer(batch_size=8, max_staleness=4)
    for number in range(8):
        pacer.asked(2.0 * number, running=3)
        pacer.enough(2.0 * number)
        pacer.delivered(2.0 * number + 1, running=3)
    assert pacer.wanted == 0


def test_the_first_batch_is_waited_for_and_says_nothing() -> None:
    pacer = Pacer(batch_size=8, max_staleness=4)
    step(pacer, at=0.0, unfinished=8, waited=5.0)
    assert pacer.wanted == 0


@pytest.mark.parametrize(("eta", "most"), [(0, 0), (1, 0), (2, 8), (3, 16)])
def test_the_reserve_never_exceeds_the_staleness_bound(eta: int, most: int) -> None:
    pacer = Pacer(batch_size=8, max_staleness=eta)
    largest = max(run_on_idle_servers(pacer, 60))
    assert pacer.wanted == most
    assert min(most, 1) <= largest <= most


def run_on_idle_servers(pacer: Pacer, steps: int, *, unfinished: int = 100) -> list[int]:
    """The reserve of each step, where holding the weights makes steps longer."""
    reserves, now = [], 0.0
    for _ in range(steps):
        waited = 1.5 if pacer.hold_s(now) > 0 else 0.5
        step(pacer, at=now + 1.0, unfinished=unfinished, waited=waited)
        reserves.append(pacer.reserve)
        now += 1.0 + waited
    return reserves


def test_weights_wait_for_the_batch_from_the_first_step_on_for_two_steps_at_most() -> None:
    pacer = Pacer(batch_size=100, max_staleness=2)
    assert pacer.hold_s(1.0) == 0  # nothing is trained yet
    step(pacer, at=0.0, unfinished=100, waited=5.0)
    assert pacer.hold_s(6.5) == 2 * 1.5  # the time since the first batch
    step(pacer, at=6.5, unfinished=50, waited=0.1)
    assert pacer.hold_s(8.0) == pytest.approx(2 * 1.6)


def test_weights_no_longer_wait_where_that_makes_steps_longer() -> None:
    pacer = Pacer(batch_size=100, max_staleness=1)
    run_on_idle_servers(pacer, 40)
    assert pacer.hold_s(100.0) == 0


def test_a_small_reserve_starts_as_other_episodes_end() -> None:
    pacer = Pacer(batch_size=100, max_staleness=2)
    run_on_idle_servers(pacer, 40, unfinished=5)
    assert pacer.reserve == 5
    assert pacer.limit(5) == 7 * 100 + 5
    assert pacer.startable(finished=5, running=0) == 95  # the rest of the next batch
    assert pacer.startable(finished=5, running=95) == 0
    assert pacer.startable(finished=60, running=40) == 55  # the reserve, within the concurrency of before
    pacer.asked(200.0, running=40)
    assert pacer.startable(finished=5, running=95) is None


@pytest.mark.parametrize("sigma", [0.0, 0.5])
@pytest.mark.parametrize("generation", [0.25, 0.5])
def test_where_generation_keeps_up_samples_are_one_version_old_at_full_speed(generation: float, sigma: float) -> None:
    load = Workload(generation=generation, sigma=sigma, max_staleness=4, steps=200)
    fresh, greedy = simulate(load, paced=True), simulate(load, paced=False)
    assert fresh.staleness <= (1.15 if generation == sigma == 0.5 else 1.1)  # 6 % of those episodes are late
    assert greedy.staleness > 3.9
    assert fresh.steps_per_s >= 0.98 * greedy.steps_per_s


def test_long_tails_need_no_older_samples_where_few_episodes_are_late() -> None:
    load = Workload(generation=0.25, sigma=1.0, steps=200)
    fresh, greedy = simulate(load, paced=True), simulate(load, paced=False)
    assert fresh.staleness <= 1.1
    assert fresh.steps_per_s >= 0.98 * greedy.steps_per_s


def test_servers_slowed_by_their_load_need_only_a_small_reserve() -> None:
    # Alone, a batch takes 0.93 of the training time, and publishing another 0.1: each batch would be late.
    load = Workload(generation=0.93, shared=0.85, publish=0.1, steps=60)
    fresh, greedy = simulate(load, paced=True), simulate(load, paced=False)
    assert fresh.staleness <= 1.25
    assert greedy.staleness > 1.9
    assert fresh.steps_per_s >= 0.97 * greedy.steps_per_s


def test_where_generation_is_slower_than_training_no_speed_is_lost() -> None:
    load = Workload(generation=2.0, max_staleness=4, steps=400)  # the first comparison costs seven steps
    fresh, greedy = simulate(load, paced=True), simulate(load, paced=False)
    assert fresh.steps_per_s >= 0.97 * greedy.steps_per_s
    assert fresh.staleness < 3.5  # 2 versions pass while an episode runs; the greedy gate is at 4


def test_rejected_episodes_and_long_tails_keep_the_bound_and_the_speed() -> None:
    load = Workload(generation=0.2, sigma=1.0, rejected=0.3, max_staleness=3, steps=200)
    fresh, greedy = simulate(load, paced=True), simulate(load, paced=False)
    assert fresh.max_staleness <= 3
    assert fresh.staleness < 2.0
    assert fresh.steps_per_s >= 0.95 * greedy.steps_per_s


def test_saturated_servers_get_no_work_ahead_that_only_makes_samples_older() -> None:
    # Episodes share the servers, which need 1.2 training times for a batch however many run at a time.
    load = Workload(generation=1.2, shared=1.0, train_sigma=0.1, max_staleness=4, steps=100)
    fresh, greedy = simulate(load, paced=True), simulate(load, paced=False)
    assert greedy.staleness > 3.9
    assert fresh.staleness < 1.15  # 1, and 1.25 while it compares
    assert fresh.steps_per_s >= 0.98 * greedy.steps_per_s


def test_saturated_servers_are_not_interrupted_by_new_weights() -> None:
    # An interrupted episode spends three tenths of its time so far on its prefix again.
    load = Workload(generation=1.2, shared=1.0, recomputed=0.3, train_sigma=0.1, steps=100)
    fresh, greedy = simulate(load, paced=True), simulate(load, paced=False)
    assert fresh.staleness < 1.15
    assert fresh.steps_per_s >= 1.1 * greedy.steps_per_s


def test_saturated_servers_are_not_slowed_down() -> None:
    load = Workload(generation=0.5, slots=8, max_staleness=2, steps=100)  # a batch of 32 takes 2
    fresh, greedy = simulate(load, paced=True), simulate(load, paced=False)
    assert fresh.steps_per_s >= 0.98 * greedy.steps_per_s
