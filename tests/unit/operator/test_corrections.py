"""How another controller that keeps changing an object is recognised."""

from __future__ import annotations

from areal_operator.corrections import MAX_CORRECTIONS, PAUSE_S, WINDOW_S, Corrections
from areal_operator.observed import Object
from areal_operator.store import LAST_MANAGER

KEY = ("ns", "exp")


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def job(manager: str | None = "kueue") -> Object:
    return {"kind": "Job", "metadata": {"name": "exp-trainer-1"}, LAST_MANAGER: manager}


def test_a_few_edits_are_no_fight() -> None:
    clock = Clock()
    corrections = Corrections(clock)
    for _ in range(MAX_CORRECTIONS - 1):
        corrections.add(KEY, job())
    assert corrections.contested(KEY) is None
    assert not corrections.must_wait(KEY, job())


def test_a_fight_is_named_slowed_down_and_forgotten() -> None:
    clock = Clock()
    corrections = Corrections(clock)
    for _ in range(MAX_CORRECTIONS):
        corrections.add(KEY, job())
    reason = corrections.contested(KEY)
    assert reason is not None
    assert "field manager kueue keeps changing Job exp-trainer-1" in reason.message
    assert corrections.contested(("ns", "other")) is None
    assert corrections.must_wait(KEY, job())
    clock.now = PAUSE_S
    assert not corrections.must_wait(KEY, job())
    clock.now = WINDOW_S + 1
    assert corrections.contested(KEY) is None


def test_a_deleted_experiment_is_forgotten() -> None:
    corrections = Corrections(Clock())
    for _ in range(MAX_CORRECTIONS):
        corrections.add(KEY, job(None))
    corrections.forget(KEY)
    assert corrections.contested(KEY) is None
