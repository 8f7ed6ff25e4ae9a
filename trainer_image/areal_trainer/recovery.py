"""Resuming a run from a recovery checkpoint: after an interruption, and after a collapse of the policy.

A rollback is a resume within the process. It restores the newest checkpoint from before the collapse announced itself,
halves the learning rate, and publishes the restored weights as a new version, so that no server takes them for the
weights that it holds. ``recover/rollback.json`` is written before the first file changes and removed after the last, so
a rollback that is interrupted is completed by the next resume.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from areal_api import names
from areal_api.health import COLLAPSE_MESSAGE
from areal_trainer.checkpoint import (
    LOOP_FILE,
    LoopState,
    RunState,
    load_loop,
    load_state,
    newest_up_to,
    recovery_checkpoints,
)
from areal_trainer.components import Components
from areal_trainer.health import LOOK_BACK, window
from areal_trainer.rollout.dump import discard_after
from areal_trainer.stats.logger import replace_file
from areal_trainer.warm_up import warm_up_policy, warm_up_servers
from areal_trainer.weights.finite import NonFiniteWeightsError

logger = logging.getLogger(__name__)
ROLLBACK_FILE = "rollback.json"
RATE_FACTOR = 0.5  # on the learning rate, at each rollback
MAX_FILE_BYTES = 4096


class CollapseError(RuntimeError):
    """The policy collapsed: its reward fell far below its best."""


@dataclass(frozen=True)
class Rollback:
    """A rollback to the checkpoint of ``step``, as the run's state says afterwards."""

    step: int
    rollbacks: int
    version_offset: int


def collapse_message(state: RunState) -> str:
    """Explains a collapse after the last step of ``state``, and what to do."""
    text = (
        f"{COLLAPSE_MESSAGE}: after step {state.step} the reward is {state.reward_last:.3g}, below a quarter of its "
        f"best, {state.reward_best:.3g}. "
    )
    if state.rollbacks:
        text += f"The run was rolled back {state.rollbacks} times before. "
    return text + (
        "Resume from an earlier checkpoint with a lower actor.optimizer.lr, a smaller rollout.max_head_offpolicyness "
        "or a larger actor.correction.kl_penalty, under a new trial_name"
    )


def begin_checkpoint(parts: Components, state: RunState) -> None:
    """Copy the state and begin to write a recovery checkpoint of it. Collective."""
    loader, loop = parts.loader.state_dict(), None
    if parts.rollouts is not None:
        parts.rollouts.flush()  # a resumed run does not train the steps before the checkpoint again
    if parts.ranks.is_first:
        loop = LoopState(state, loader, parts.engine.state_dict())
    keep_from = None
    if parts.config.actor.on_collapse == "rollback":
        age = LOOK_BACK + window(parts.config.consumer_batch_size) - 2
        keep_from = _before_precursor(parts, state.step, precursor_age=age)
    parts.recovery.start(state.step, parts.policy, loop, keep_from=keep_from)


def resume(parts: Components) -> RunState:
    """Connect the engine and restore the newest recovery checkpoint, if any, on all ranks and servers.

    Raises ``ValueError`` for a checkpoint that is damaged, not finite, or of other data.
    """
    recovers = parts.config.recover.mode == "auto"
    if recovers and parts.ranks.is_first:
        complete_rollback(parts.run)
    checkpoints = parts.ranks.from_first(recovery_checkpoints(parts.run) if recovers else [])
    if recovers:
        parts.loader.state_dict()  # refuses rows that no checkpoint can store before the first step
    if not checkpoints:
        return _start(parts)
    step, checkpoint = checkpoints[-1]
    loop = _restore(parts, checkpoint)
    weights = parts.publisher.write(loop.run.version)
    parts.engine.initialize(vocab_size=parts.vocab_size, weights=weights, routing=parts.policy.routing)
    _restore_rollout(parts, loop)
    logger.info("resumed from %s: step %d of %d", checkpoint, step, parts.total_steps)
    return loop.run


def roll_back(parts: Components, state: RunState, *, precursor_age: int) -> RunState:
    """Continue from the newest checkpoint from before the precursor of a collapse in the last step. Collective.

    ``precursor_age``: see ``Health``. Raises ``CollapseError`` on every rank after ``actor.max_rollbacks``.
    """
    if state.rollbacks >= parts.config.actor.max_rollbacks:
        raise CollapseError(collapse_message(state))
    parts.recovery.wait()
    parts.ranks.barrier()
    before = _before_precursor(parts, state.step, precursor_age=precursor_age)
    checkpoints = parts.ranks.from_first(recovery_checkpoints(parts.run))
    step, checkpoint = newest_up_to(checkpoints, before) or checkpoints[0]
    parts.publisher.wait()
    parts.engine.discard_episodes()
    if parts.ranks.is_first:
        offset = state.version + 1 - step
        begin_rollback(parts.run, Rollback(step, rollbacks=state.rollbacks + 1, version_offset=offset))
        complete_rollback(parts.run)
    parts.ranks.barrier()
    loop = _restore(parts, checkpoint)
    parts.publisher.publish(loop.run.version, wait=True)
    _restore_rollout(parts, loop)
    logger.warning(
        "%s after step %d: rolled back to step %d as version %d with learning rates × %g (rollback %d of at most %d)",
        *(COLLAPSE_MESSAGE, state.step, step, loop.run.version, parts.policy.lr_factor),
        *(loop.run.rollbacks, parts.config.actor.max_rollbacks),
    )
    return loop.run


def begin_rollback(run: Path, rollback: Rollback) -> None:
    """Write the intention to roll back."""
    replace_file(names.recover_dir(run) / ROLLBACK_FILE, json.dumps(asdict(rollback)) + "\n")


def complete_rollback(run: Path) -> None:
    """Apply a rollback that was begun, if any: make its checkpoint the newest one and record the rollback in it.

    May be interrupted anywhere and repeated. Raises ``ValueError`` if its file or its checkpoint cannot be read.
    """
    file = names.recover_dir(run) / ROLLBACK_FILE
    if not file.exists():
        return
    rollback = _read_rollback(file)
    checkpoint = names.recover_step_dir(run, rollback.step)
    loop = load_loop(checkpoint)  # before anything is removed
    for step, newer in reversed(recovery_checkpoints(run)):
        if step > rollback.step:
            shutil.rmtree(newer)
    state = replace(loop.run, rollbacks=rollback.rollbacks, version_offset=rollback.version_offset)
    replace_file(checkpoint / LOOP_FILE, replace(loop, run=state).to_json())
    file.unlink()


def _read_rollback(file: Path) -> Rollback:
    try:
        with file.open(encoding="utf-8") as opened:
            content = json.loads(opened.read(MAX_FILE_BYTES))
        rollback = Rollback(**content)
        if any(type(number) is not int or number < 0 for number in asdict(rollback).values()):
            raise ValueError("it holds other than whole numbers")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{file} cannot be read: {error}; delete it to resume from the last recovery checkpoint"
        ) from error
    return rollback


def _before_precursor(parts: Components, step: int, *, precursor_age: int) -> int:
    """The last step whose weights the statistics since the precursor do not depend on.

    The step of the precursor trained samples that are up to η versions older than the weights it began with.
    """
    return step - precursor_age - 1 - parts.config.max_staleness


def _start(parts: Components) -> RunState:
    """Begin a run: connect the engine to servers that have loaded the model."""
    state = RunState()
    _require_usable(parts, f"actor.path {parts.config.actor.path!r}")
    _rewind_files(parts, 0)
    # The servers start with these weights, but one that outlived an earlier trainer holds newer ones.
    weights = parts.publisher.write(0)
    warm_up_policy(parts)
    parts.engine.initialize(vocab_size=parts.vocab_size, weights=weights, routing=parts.policy.routing)
    if parts.ranks.is_first and parts.config.valid_dataset is None:  # else the first evaluation warms them up
        warm_up_servers(parts)
    if parts.config.actor.on_collapse == "rollback":
        begin_checkpoint(parts, state)  # so that there is always a checkpoint from before a precursor
    return state


def _restore(parts: Components, checkpoint: Path) -> LoopState:
    """Restore data position, policy and statistics. Collective."""
    loop = load_loop(checkpoint)
    parts.loader.load_state_dict(loop.loader)
    load_state(checkpoint, parts.policy)
    _require_usable(parts, f"recovery checkpoint {checkpoint}")
    _rewind_files(parts, loop.run.step)
    if parts.stats is not None and loop.run.held is not None:
        parts.stats.rewind(loop.run.step - 1)  # of a start that committed them, but wrote no later checkpoint
    parts.policy.version = loop.run.version
    parts.policy.lr_factor = RATE_FACTOR**loop.run.rollbacks
    return loop


def _rewind_files(parts: Components, step: int) -> None:
    """Remove what the files of the run say about steps after ``step``."""
    if parts.stats is not None:
        parts.stats.rewind(step)
    if parts.rollouts is not None:
        parts.rollouts.discard_after(step)
    elif parts.ranks.is_first:  # of an earlier attempt, which wrote samples
        discard_after(names.rollouts_dir(parts.run), step)
    if parts.ranks.is_first:
        discard_after(names.evaluations_dir(parts.run), step)


def _restore_rollout(parts: Components, loop: LoopState) -> None:
    """Restore prompts in flight, once the servers hold the restored weights."""
    if parts.ranks.is_first:
        parts.engine.load_state_dict(loop.executor, total_batches=parts.total_steps + loop.run.version_offset)


def _require_usable(parts: Components, source: str) -> None:
    """Raise ``ValueError`` if the weights loaded from ``source`` are not finite. Collective."""
    try:
        parts.policy.require_finite()
    except NonFiniteWeightsError as error:
        raise ValueError(f"{source} cannot be trained: {error}; choose other weights") from error
