"""When something is due again."""

from __future__ import annotations

from areal_api.config import Frequency
from areal_trainer.checkpoint import Schedule


def due_steps(frequency: Frequency, *, steps: int = 12, step_s: float = 10.0, steps_per_epoch: int = 5) -> list[int]:
    clock = [0.0]
    due = Schedule(frequency, steps_per_epoch=steps_per_epoch, now=lambda: clock[0])
    found = []
    for step in range(1, steps + 1):
        clock[0] += step_s
        if due.at(step):
            found.append(step)
    return found


def test_nothing_set_is_never() -> None:
    assert due_steps(Frequency()) == []


def test_every_so_many_steps() -> None:
    assert due_steps(Frequency(freq_steps=4)) == [4, 8, 12]


def test_every_so_many_epochs() -> None:
    assert due_steps(Frequency(freq_epochs=2)) == [10]


def test_every_so_many_seconds_since_the_last_time() -> None:
    assert due_steps(Frequency(freq_secs=25)) == [3, 6, 9, 12]


def test_whichever_comes_first_and_the_seconds_count_anew() -> None:
    assert due_steps(Frequency(freq_steps=5, freq_secs=25)) == [3, 5, 8, 10]
