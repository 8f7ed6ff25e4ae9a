"""Recovery checkpoints are written in the background, from a copy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from areal_trainer.checkpoint import LoopState, RunState, load_state, recovery_checkpoints
from areal_trainer.ranks import Ranks, joined
from areal_trainer.recovery_writer import RecoveryWriter

LOOP = LoopState(RunState(step=1), {"consumed": 3}, {"rows": []})


class OneTensor:
    """The part of a policy that checkpoints use."""

    def __init__(self, value: float) -> None:
        self.tensor = torch.full((4,), value)

    def state_dict(self) -> dict[str, Any]:
        return {"a": self.tensor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tensor = state["a"]


@pytest.fixture(autouse=True)
def ranks() -> Iterator[Ranks]:
    with joined("cpu") as ranks:
        yield ranks


def read(run: Path, step: int) -> list[float]:
    policy = OneTensor(0.0)
    load_state(run / f"recover/step{step}", policy)
    return policy.tensor.tolist()


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Holds every write until the event is set."""
    save, free = dcp.save, threading.Event()

    def held(*arguments: Any, **keywords: Any) -> Any:
        assert free.wait(60.0)
        return save(*arguments, **keywords)

    monkeypatch.setattr(dcp, "save", held)
    yield free
    free.set()


def test_a_step_does_not_wait_for_the_file_system_and_does_not_change_what_is_written(
    tmp_path: Path, slow_disk: threading.Event
) -> None:
    writer, policy = RecoveryWriter(tmp_path, keep=2), OneTensor(1.0)
    for step in (1, 2):
        policy.tensor.fill_(step)
        writer.start(step, policy, LOOP)
        assert not writer.idle()
        policy.tensor.fill_(100.0)  # by the next steps
        assert [number for number, _ in recovery_checkpoints(tmp_path)] == list(range(1, step))
        slow_disk.set()
        writer.wait()
        slow_disk.clear()
        assert writer.idle()
        assert read(tmp_path, step) == [float(step)] * 4
    slow_disk.set()


def test_closing_completes_a_checkpoint_that_is_being_written(tmp_path: Path, slow_disk: threading.Event) -> None:
    writer = RecoveryWriter(tmp_path, keep=2)
    writer.start(1, OneTensor(1.0), LOOP)
    threading.Timer(0.1, slow_disk.set).start()
    writer.close()
    assert read(tmp_path, 1) == [1.0] * 4


def test_a_failed_write_is_reported_after_the_next_step_and_leaves_the_checkpoint_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RecoveryWriter(tmp_path, keep=2)
    writer.start(1, OneTensor(1.0), LOOP)
    writer.wait()
    writer.raise_failure()

    def full(*arguments: Any, **keywords: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dcp, "save", full)
    writer.start(2, OneTensor(2.0), LOOP)
    with pytest.raises(OSError, match="No space left"):
        writer.wait()
    with pytest.raises(OSError, match="No space left"):
        writer.raise_failure()
    writer.close()
    assert [step for step, _ in recovery_checkpoints(tmp_path)] == [1]


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    writer = RecoveryWriter(tmp_path, keep=2)
    for step in (1, 2, 3):
        writer.start(step, OneTensor(0.0), LOOP)
    writer.wait()
    assert [step for step, _ in recovery_checkpoints(tmp_path)] == [2, 3]


@pytest.mark.parametrize(("keep_from", "kept"), [(3, [3, 5, 6]), (1, [1, 5, 6]), (0, [1, 5, 6]), (5, [5, 6])])
def test_a_checkpoint_from_before_a_step_is_kept_for_a_rollback(
    tmp_path: Path, keep_from: int, kept: list[int]
) -> None:
    writer = RecoveryWriter(tmp_path, keep=2)
    for step in (1, 2, 3, 4, 5, 6):
        writer.start(step, OneTensor(0.0), LOOP, keep_from=min(keep_from, step - 1))
    writer.wait()
    assert [step for step, _ in recovery_checkpoints(tmp_path)] == kept
