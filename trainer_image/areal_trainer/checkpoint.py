"""Recovery checkpoints: everything that the same command needs to continue an interrupted run.

``recovery_writer`` writes ``recover/step<N>/`` to a temporary directory and renames it when it is complete, so a kill
at any moment leaves the previous checkpoint. It holds the weights, optimizer and schedule
(torch.distributed.checkpoint, readable by any number of ranks), each rank's random number generators, and
``loop.json``: data position, prompts in flight, counters.

All files are safetensors or JSON. The volume may be writable by others, and reading these formats executes nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from areal_api import names
from areal_api.frequency import Frequency
from areal_trainer import tagged_json
from areal_trainer.ranks import Ranks

LOOP_FILE = "loop.json"
STATE_DIR = "state"
PICKLED_LOOP_FILE = "loop.pt"  # written by earlier versions


class Checkpointable(Protocol):
    """The part of a policy that checkpoints use."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors of at least one dimension, sharded; torch.distributed.checkpoint reads into them in place."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that was read into the result of ``state_dict``."""
        ...


@dataclass(frozen=True)
class RunState:
    """Progress of a run; part of every recovery checkpoint."""

    step: int = 0  # completed steps
    seconds: float = 0.0  # of training, without the time between an end and a resume
    tokens: int = 0  # trained tokens, including prompts
    reward_first: float | None = None
    reward_last: float | None = None
    eval_first: float | None = None
    eval_last: float | None = None
    eval_best: float | None = None
    eval_best_step: int | None = None
    reward_best: float | None = None  # best mean over the steps of ``health.window``
    reward_best_error: float | None = None  # its standard error
    collapsed: bool = False  # after the last step
    rollbacks: int = 0
    version_offset: int = 0  # versions that were published before a rollback and are in no completed step
    # Statistics of the last step, if a signal has ended its evaluation: a resume evaluates, and commits them.
    held: dict[str, float] | None = None

    @property
    def version(self) -> int:
        """Version of the weights."""
        return self.step + self.version_offset


@dataclass(frozen=True)
class LoopState:
    """State of the training loop on rank 0."""

    run: RunState
    loader: dict[str, Any]  # ``PromptLoader.state_dict``
    executor: dict[str, Any]  # ``RemoteSGLangEngine.state_dict``

    def to_json(self) -> str:
        """Encode the state. Raises ``ValueError`` for rows that hold other than plain values."""
        return tagged_json.dumps(asdict(self), what="recovery")

    @classmethod
    def from_json(cls, text: str) -> LoopState:
        """Decode a state. Raises ``ValueError`` if ``text`` is not one."""
        state = tagged_json.loads(text)
        try:
            return cls(
                run=RunState(**state["run"]),
                loader=dict(state["loader"]),
                executor=dict(state["executor"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"the state of the loop is incomplete: {error}") from error


def recovery_checkpoints(run: Path) -> list[tuple[int, Path]]:
    """All complete checkpoints as (step, directory), oldest first."""
    steps = [(path.name.removeprefix("step"), path) for path in names.recover_dir(run).glob("step*")]
    return sorted((int(number), path) for number, path in steps if number.isdecimal())


def newest_up_to(checkpoints: Sequence[tuple[int, Path]], step: int) -> tuple[int, Path] | None:
    """The newest of ``checkpoints`` written after at most ``step`` steps."""
    return max((checkpoint for checkpoint in checkpoints if checkpoint[0] <= step), default=None)


def load_loop(checkpoint: Path) -> LoopState:
    """The loop's state. Raises ``ValueError``, naming the file, if it cannot be read."""
    file = checkpoint / LOOP_FILE
    if not file.is_file() and (checkpoint / PICKLED_LOOP_FILE).is_file():
        raise ValueError(
            f"{checkpoint} was written by an earlier version as pickles, which are not read; finish that run with its "
            "version, or start one with a new trial_name"
        )
    try:
        return LoopState.from_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}; {_remedy(checkpoint)}") from error


def load_state(checkpoint: Path, policy: Checkpointable) -> None:
    """Restore policy and random numbers. Collective. Generators only if the same number of ranks wrote them.

    Raises ``ValueError``, naming the directory, for files that are damaged or belong to another model.
    """
    state = policy.state_dict()
    try:
        dcp.load(state, storage_reader=HuggingFaceStorageReader(str(checkpoint / STATE_DIR)))
        policy.load_state_dict(state)
        rng = checkpoint / rng_file(Ranks.current())
        if rng.is_file():
            _set_rng_state(load_file(rng))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, dcp.api.CheckpointException) as error:
        raise ValueError(f"{checkpoint} cannot be restored: {_first_line(error)}; {_remedy(checkpoint)}") from error


class Schedule:
    """Decides when something with a ``Frequency`` is due again. Rank 0's clock decides for all ranks."""

    def __init__(
        self, frequency: Frequency, *, steps_per_epoch: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._frequency = frequency
        self._steps_per_epoch = steps_per_epoch
        self._now = now
        self._last_s = now()

    def at(self, step: int) -> bool:
        """Whether it is due after ``step`` completed steps; if so, its timer restarts. Collective."""
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
        return bool(Ranks.current().from_first(self._now() - self._last_s >= seconds))


def _remedy(checkpoint: Path) -> str:
    return f"delete {checkpoint} to resume from the checkpoint before it, or start a run with a new trial_name"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:500]


def rng_file(ranks: Ranks) -> str:
    """File with the state of a rank's random number generators."""
    return f"rng-{ranks.rank}-of-{ranks.world_size}.safetensors"


def rng_state() -> dict[str, torch.Tensor]:
    """State of this process's random number generators, for safetensors."""
    _, python, python_gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    state = {
        "python": torch.tensor(python, dtype=torch.int64),
        "python_gauss": torch.tensor([] if python_gauss is None else [python_gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
        "numpy_position": torch.tensor([numpy["state"]["pos"], numpy["has_gauss"]], dtype=torch.int64),
        "numpy_gauss": torch.tensor([numpy["gauss"]], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_rng_state(state: dict[str, torch.Tensor]) -> None:
    gauss = state["python_gauss"].tolist()
    random.setstate((3, tuple(state["python"].tolist()), gauss[0] if gauss else None))
    position, has_gauss = state["numpy_position"].tolist()
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, float(state["numpy_gauss"][0])))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
