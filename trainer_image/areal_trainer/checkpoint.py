"""Recovery checkpoints: everything that the same command needs to go on as if nothing had happened.

``recover/step<N>/`` is written aside and named when it is whole, so a kill at any moment leaves the one before.
It holds model, optimizer and scheduler (torch.distributed.checkpoint: any number of ranks may load it), the random
number generators of each rank, and the loop: data position, prompts in flight, versions and counters.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from areal_api import names
from areal_api.config import Frequency
from areal_trainer.weights.disk import replace_directory

LOOP_FILE = "loop.pt"
STATE_DIR = "state"


class Checkpointable(Protocol):
    """What a checkpoint needs of a policy."""

    def state_dict(self) -> dict[str, Any]:
        """Model, optimizer and scheduler, sharded as they are; torch.distributed.checkpoint reads into it in place."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a state that was read."""
        ...


def save_recovery(run: Path, *, step: int, policy: Checkpointable, loop: dict[str, Any], keep: int) -> Path:
    """Write ``recover/step<step>/``. Collective; ``loop`` is rank 0's. The last ``keep`` checkpoints stay."""
    target = names.recover_step_dir(run, step)
    partial = target.with_name(f".{target.name}.partial")
    first = dist.get_rank() == 0
    if first:
        for left_over in names.recover_dir(run).glob(".*"):
            shutil.rmtree(left_over, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    dcp.save(policy.state_dict(), checkpoint_id=partial / STATE_DIR)
    torch.save(_rng_state(), partial / _rng_file(dist.get_rank(), dist.get_world_size()))
    if first:
        torch.save(loop, partial / LOOP_FILE)
    dist.barrier()
    if first:
        replace_directory(partial, target)
        for _, old in recovery_checkpoints(run)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    dist.barrier()
    return target


def recovery_checkpoints(run: Path) -> list[tuple[int, Path]]:
    """Every whole checkpoint as (step, directory), oldest first."""
    found = [(path.name.removeprefix("step"), path) for path in names.recover_dir(run).glob("step*")]
    return sorted((int(number), path) for number, path in found if number.isdigit())


def load_loop(checkpoint: Path) -> dict[str, Any]:
    """The loop's part of a checkpoint."""
    return torch.load(checkpoint / LOOP_FILE, weights_only=False)


def load_state(checkpoint: Path, policy: Checkpointable) -> None:
    """Restore policy and random numbers. Collective. The generators only where as many ranks wrote the checkpoint."""
    state = policy.state_dict()
    dcp.load(state, checkpoint_id=checkpoint / STATE_DIR)
    policy.load_state_dict(state)
    rng = checkpoint / _rng_file(dist.get_rank(), dist.get_world_size())
    if rng.is_file():
        _set_rng_state(torch.load(rng, weights_only=False))


class Schedule:
    """Says when something with a ``Frequency`` is to be done again. Rank 0's clock decides for every rank."""

    def __init__(self, frequency: Frequency, *, steps_per_epoch: int, now: Callable[[], float]) -> None:
        self._frequency = frequency
        self._steps_per_epoch = steps_per_epoch
        self._now = now
        self._last_s = now()

    def at(self, step: int) -> bool:
        """Whether it is due after ``step`` finished steps; if so, the seconds count anew. Collective."""
        frequency = self._frequency
        due = (
            (frequency.freq_steps is not None and step % frequency.freq_steps == 0)
            or (frequency.freq_epochs is not None and step % (frequency.freq_epochs * self._steps_per_epoch) == 0)
            or (frequency.freq_secs is not None and self._seconds_passed(frequency.freq_secs))
        )
        if due:
            self._last_s = self._now()
        return due

    def _seconds_passed(self, seconds: float) -> bool:
        answer = [self._now() - self._last_s >= seconds]
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.broadcast_object_list(answer, src=0)
        return answer[0]


def _rng_file(rank: int, world_size: int) -> str:
    return f"rng-{rank}-of-{world_size}.pt"


def _rng_state() -> dict[str, Any]:
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_rng_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
