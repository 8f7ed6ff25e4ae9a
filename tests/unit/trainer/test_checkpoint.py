"""Schedules, and recovery checkpoints that cannot run code."""

from __future__ import annotations

import json
import pickle
import random
import stat
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from areal_api.frequency import Frequency
from areal_trainer.checkpoint import (
    LoopState,
    RunState,
    Schedule,
    load_loop,
    load_state,
)
from areal_trainer.ranks import joined
from areal_trainer.recovery_writer import RecoveryWriter


def due_steps(frequency: Frequency, *, steps: int = 12, step_s: float = 10.0, steps_per_epoch: int = 5) -> list[int]:
    clock = [0.0]
    schedule = Schedule(frequency, steps_per_epoch=steps_per_epoch, now=lambda: clock[0])
    due_at = []
    for step in range(1, steps + 1):
        clock[0] += step_s
        if schedule.at(step):
            due_at.append(step)
    return due_at


def test_without_a_frequency_nothing_is_due() -> None:
    assert due_steps(Frequency()) == []


def test_steps() -> None:
    assert due_steps(Frequency(freq_steps=4)) == [4, 8, 12]


def test_epochs() -> None:
    assert due_steps(Frequency(freq_epochs=2)) == [10]


def test_seconds_since_the_last_time() -> None:
    assert due_steps(Frequency(freq_secs=25)) == [3, 6, 9, 12]


def test_the_first_frequency_applies_and_restarts_the_timer() -> None:
    assert due_steps(Frequency(freq_steps=5, freq_secs=25)) == [3, 5, 8, 10]


class TwoTensors:
    """The part of a policy that checkpoints use."""

    def __init__(self, value: float = 0.0) -> None:
        self.tensors = {"a": torch.full((3, 2), value), "b": {"c": torch.full((1,), value)}}

    def state_dict(self) -> dict[str, Any]:
        return self.tensors

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tensors = state

    def values(self) -> list[Tensor]:
        return [self.tensors["a"], self.tensors["b"]["c"]]  # type: ignore[index,list-item]


ROWS = [{"task_id": "t/1", "messages": [{"role": "user", "content": "1 + 1"}], "score": np.float32(0.5), "raw": b"x"}]
LOOP = LoopState(RunState(step=3, tokens=7, reward_last=0.5), {"consumed": 3}, {"consumed": 12, "rows": ROWS})


def saved(run: Path) -> Path:
    """A checkpoint of ``TwoTensors(2.0)`` and ``LOOP`` at step 3."""
    writer = RecoveryWriter(run, keep=2)
    writer.start(3, TwoTensors(2.0), LOOP)
    writer.wait()
    return run / "recover/step3"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    with joined("cpu"):
        return saved(tmp_path)


def test_a_checkpoint_restores_weights_random_numbers_and_loop(tmp_path: Path) -> None:
    random.gauss(0, 1)  # leaves a second value in the generator's state
    np.random.standard_normal()
    with joined("cpu"):
        path = saved(tmp_path)
        numbers = (random.gauss(0, 1), np.random.standard_normal(), torch.rand(2).tolist())
        policy = TwoTensors()
        load_state(path, policy)
        assert (random.gauss(0, 1), np.random.standard_normal(), torch.rand(2).tolist()) == numbers
    assert all((tensor == 2.0).all() for tensor in policy.values())
    assert load_loop(path) == LOOP


class RunsWhenUnpickled:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_a_checkpoint_contains_no_pickle(checkpoint: Path) -> None:
    files = sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file())
    assert files == ["loop.json", "rng-0-of-1.safetensors", "state/shard-00001-model-00001-of-00001.safetensors"]


def test_planted_pickles_are_never_executed(checkpoint: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    payload = pickle.dumps(RunsWhenUnpickled(marker))
    names = [str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()]
    extra = ["loop.pt", "rng-0-of-1.pt", "state/.metadata", "state/__0_0.distcp"]
    for name in names + extra:
        original = (checkpoint / name).read_bytes() if (checkpoint / name).exists() else None
        (checkpoint / name).write_bytes(payload)
        with joined("cpu"):
            refusal = nullcontext() if name in extra else pytest.raises(ValueError, match=r"delete .*step3")
            with refusal:
                load_loop(checkpoint)
                load_state(checkpoint, TwoTensors())
        assert not marker.exists(), name
        (checkpoint / name).unlink()
        if original is not None:
            (checkpoint / name).write_bytes(original)
    pickle.loads(payload)
    assert marker.exists()  # the payload works where pickles are read


def test_a_checkpoint_of_pickles_is_refused_by_name(checkpoint: Path) -> None:
    (checkpoint / "loop.json").rename(checkpoint / "loop.pt")
    with pytest.raises(ValueError, match=r"step3 was written by an earlier version as pickles.*new trial_name"):
        load_loop(checkpoint)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"run": {}}', json.dumps({"$type": ["array", ["O", [1], ""]]}), "[" * 100_000],
    ids=["empty", "cut", "list", "null", "incomplete", "object array", "deep"],
)
def test_a_damaged_loop_file_is_refused_by_name(checkpoint: Path, text: str) -> None:
    (checkpoint / "loop.json").write_text(text)
    with pytest.raises(ValueError, match=r"loop\.json cannot be read: .*delete .*step3"):
        load_loop(checkpoint)


def test_a_checkpoint_of_another_model_is_refused(checkpoint: Path) -> None:
    policy = TwoTensors()
    policy.tensors["a"] = torch.zeros(5, 2)
    with joined("cpu"), pytest.raises(ValueError, match="step3 cannot be restored"):
        load_state(checkpoint, policy)


def test_checkpoint_files_have_the_modes_of_the_umask(checkpoint: Path) -> None:
    modes = {stat.S_IMODE(path.stat().st_mode) for path in checkpoint.rglob("*") if path.is_file()}
    (checkpoint / "plain").touch()
    assert modes == {stat.S_IMODE((checkpoint / "plain").stat().st_mode)}
