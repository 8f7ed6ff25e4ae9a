"""Writes recovery checkpoints in the background, so that no step waits for the file system.

``start`` copies the state to host memory, which is all that a step waits for; a thread writes the copy. The copy takes
as much host memory as the checkpoint (with Adam 12 bytes per parameter, divided by the ranks) and is reused by the next
one, so there is one write at a time.
"""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from areal_api import names
from areal_trainer.checkpoint import (
    LOOP_FILE,
    STATE_DIR,
    Checkpointable,
    LoopState,
    newest_up_to,
    recovery_checkpoints,
    rng_file,
    rng_state,
)
from areal_trainer.ranks import Ranks
from areal_trainer.weights.disk import replace_directory
from areal_trainer.weights.safetensors_writer import save_file

CLOSE_S = 60.0  # longest wait for a write that is under way when the run fails


@dataclass(frozen=True)
class _Snapshot:
    """The state of a rank after ``step`` steps, in host memory."""

    step: int
    state: dict[str, Any]
    rng: dict[str, torch.Tensor]
    loop: str | None  # on rank 0
    keep_from: int | None


class RecoveryWriter:
    """Every rank has one; ``start``, ``idle`` and ``wait`` are collective. Keeps the newest ``keep`` checkpoints."""

    def __init__(self, run: Path, *, keep: int) -> None:
        self._run = run
        self._keep = keep
        self._ranks = Ranks.current()
        # The thread's collectives must not mix with those of the training loop.
        self._group = dist.new_group(backend="gloo") if self._ranks.world_size > 1 else None
        options = StagingOptions(
            use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
        )
        self._stager = DefaultStager(options)
        self._writing: Future[Path] | None = None

    def start(self, step: int, policy: Checkpointable, loop: LoopState | None, *, keep_from: int | None = None) -> None:
        """Copy the state and begin to write ``recover/step<step>/``. ``loop`` is given on rank 0 only.

        ``keep_from``: also keep the newest checkpoint up to this step, or the oldest if there is none. Waits for an
        earlier write and raises its error.
        """
        self.wait()
        state = self._stager.stage(policy.state_dict())
        assert isinstance(state, dict)  # a future only with asynchronous staging
        snapshot = _Snapshot(step, state, rng_state(), None if loop is None else loop.to_json(), keep_from)
        writing: Future[Path] = Future()

        def run() -> None:
            try:
                writing.set_result(self._write(snapshot))
            except BaseException as error:  # noqa: BLE001  raised by raise_failure or wait
                writing.set_exception(error)

        self._writing = writing
        # A daemon: a write that waits for a lost rank must not keep this process alive.
        threading.Thread(target=run, name="recovery", daemon=True).start()

    def idle(self) -> bool:
        """Whether no rank is writing."""
        return not self._ranks.any(self._writing is not None and not self._writing.done())

    def raise_failure(self) -> None:
        """Raise the error of a write that has failed on this rank."""
        if self._writing is not None and self._writing.done():
            self._writing.result()

    def wait(self) -> None:
        """Wait until the checkpoint is complete; raises the error of a failed write."""
        if self._writing is not None:
            self._writing.result()

    def close(self) -> None:
        """Give a write that is under way time to complete. Does not raise its error."""
        if self._writing is not None:
            wait([self._writing], timeout=CLOSE_S)
        self._stager.close()

    def _write(self, snapshot: _Snapshot) -> Path:
        target = names.recover_step_dir(self._run, snapshot.step)
        partial = target.with_name(f".{target.name}.partial")
        if self._ranks.is_first:
            for left_over in names.recover_dir(self._run).glob(".*"):
                shutil.rmtree(left_over, ignore_errors=True)
            partial.mkdir(parents=True)
        self._barrier()
        writer = HuggingFaceStorageWriter(str(partial / STATE_DIR), save_distributed=True)
        dcp.save(snapshot.state, storage_writer=writer, process_group=self._group)
        save_file(snapshot.rng, partial / rng_file(self._ranks), dtype=torch.float64)
        if snapshot.loop is not None:
            (partial / LOOP_FILE).write_text(snapshot.loop, encoding="utf-8")
        self._barrier()
        if self._ranks.is_first:
            replace_directory(partial, target)
            self._prune(snapshot.keep_from)
        self._barrier()
        return target

    def _prune(self, keep_from: int | None) -> None:
        complete = recovery_checkpoints(self._run)
        protected = None if keep_from is None else newest_up_to(complete, keep_from) or complete[0]
        for checkpoint in complete[: -self._keep]:
            if checkpoint != protected:
                shutil.rmtree(checkpoint[1], ignore_errors=True)

    def _barrier(self) -> None:
        if self._group is not None:
            dist.barrier(group=self._group)
