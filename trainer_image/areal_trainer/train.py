"""The training loop: ``torchrun -m areal_trainer.train`` with ``AREAL_CONFIG`` and ``AREAL_LLM_SERVER_ADDRS``.

A step is rollout, log-probs, advantages, update, publish: ``train_step`` has a line for each. The rest of this file is
what makes a run survive: recovery, evaluation, checkpoints, and an end that says what came out.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from areal_api import logs, names, stat_names
from areal_api.config import GRPOConfig
from areal_api.load import load_expr_config
from areal_trainer.batch import PackedBatch, pack
from areal_trainer.checkpoint import Schedule, load_loop, load_state, recovery_checkpoints, save_recovery
from areal_trainer.components import Components, build_components
from areal_trainer.evaluate import evaluate
from areal_trainer.grpo import compute_advantages
from areal_trainer.ranks import Ranks, joined, lost_another
from areal_trainer.rollout.episode import Interrupted
from areal_trainer.stats.logger import Timings, write_summary
from areal_trainer.stats.operator_sink import write_termination_message
from areal_trainer.stop import StopSignal
from areal_trainer.warm_up import warm_up_policy, warm_up_servers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunState:
    """Where a run stands; a part of every recovery checkpoint."""

    step: int = 0  # finished steps, and the version of the weights
    seconds: float = 0.0  # since the first step began, less the time between an end and the resume
    tokens: int = 0  # trained, prompts included
    reward_first: float | None = None
    reward_last: float | None = None
    eval_first: float | None = None
    eval_last: float | None = None


def train(parts: Components, state: RunState, stop: StopSignal) -> Iterator[RunState]:
    """Train from ``state`` until the last step or until ``stop`` is set; yields how far the run is, step by step."""
    stop.wakes(parts.engine.interrupt)
    if state.step == 0 and parts.config.valid_dataset is not None:
        reward = _evaluate(parts)
        state = replace(state, eval_first=reward, eval_last=reward)
    schedules, timings = Schedules.of(parts), Timings()
    schedules.recovered_at = state.step or -1
    while state.step < parts.total_steps:
        began = time.monotonic()
        try:
            with timings.stage("rollout"):
                trajectories = parts.engine.prepare_batch(parts.loader, parts.workflow, parts.accept)
        except Interrupted:
            break
        stats = train_step(parts, pack(trajectories), timings)
        state = _after_step(parts, state, schedules, stats, timings, began)
        yield state
        timings = Timings()
        if parts.config.recover.mode == "auto" and schedules.recover.at(state.step):
            # After the statistics were written: a checkpoint never stands for a step whose line could be lost.
            with timings.stage("checkpoint_for_recover"):
                _save_recovery(parts, state)
            schedules.recovered_at = state.step
        if parts.ranks.any(stop.requested()):
            break
    parts.publisher.wait()
    if parts.config.recover.mode == "auto" and schedules.recovered_at != state.step:
        _save_recovery(parts, state)


def train_step(parts: Components, batch: PackedBatch, timings: Timings) -> dict[str, float]:
    """One update of the policy on ``batch``, and its publishing as the next version; returns the statistics."""
    config, policy = parts.config.actor, parts.policy
    prox_logp_T = ref_logp_T = None
    if config.use_decoupled_loss or config.recompute_logprob:
        with timings.stage("recompute_logp"):
            prox_logp_T = policy.logprobs(batch)
    if parts.reference is not None:
        with timings.stage("ref_logp"):
            ref_logp_T = parts.reference.logprobs(batch)
    with timings.stage("compute_advantage"):
        advantages_T, stats = compute_advantages(
            batch,
            config,
            parts.config.gconfig,
            logp_T=prox_logp_T,
            ref_logp_T=ref_logp_T,
            reduce=parts.ranks.reduce_sum,
        )
    with timings.stage("train_step"):
        stats |= policy.update(batch, advantages_T=advantages_T, prox_logp_T=prox_logp_T)
    policy.version += 1
    with timings.stage("update_weights"):
        parts.publisher.publish(policy.version, wait=parts.config.max_staleness == 0)
    return stats


@dataclass
class Schedules:
    """What else is due after a step."""

    save: Schedule
    recover: Schedule
    evaluate: Schedule
    recovered_at: int = -1

    @classmethod
    def of(cls, parts: Components) -> Schedules:
        def due(frequency: Any) -> Schedule:
            return Schedule(frequency, steps_per_epoch=parts.steps_per_epoch, now=time.monotonic)

        return cls(due(parts.config.saver), due(parts.config.recover), due(parts.config.evaluator))


def _after_step(
    parts: Components, state: RunState, schedules: Schedules, stats: dict[str, float], timings: Timings, began: float
) -> RunState:
    """Evaluate, save and checkpoint where due, and commit the statistics of the step."""
    step = state.step + 1
    last = step == parts.total_steps
    total = parts.total_steps
    line: dict[str, float] = {stat_names.STEP: step, stat_names.VERSION: step, stat_names.TOTAL_STEPS: total}
    if (schedules.evaluate.at(step) or last) and parts.config.valid_dataset is not None:
        with timings.stage("eval"):
            state = replace(state, eval_last=_evaluate(parts))
        line[stat_names.EVAL_REWARD] = state.eval_last or 0.0
    if step == 1 and state.eval_first is not None:
        line[stat_names.EVAL_REWARD_INITIAL] = state.eval_first
    if schedules.save.at(step) or last:
        with timings.stage("save"):
            epoch = -(-step // parts.steps_per_epoch)
            parts.policy.save_hf(names.checkpoint_dir(parts.run, epoch, step))
    seconds = time.monotonic() - began
    reward = stats[stat_names.mean(stat_names.TASK_REWARD)]
    state = replace(
        state,
        step=step,
        seconds=state.seconds + seconds,
        tokens=state.tokens + int(stats["n_tokens"]),
        reward_first=reward if state.reward_first is None else state.reward_first,
        reward_last=reward,
    )
    line |= {
        "time": state.seconds,
        "seconds_per_step": seconds,
        stat_names.TOKENS_PER_SECOND: stats["n_tokens"] / seconds,
        **stats,
        **parts.engine.statistics,
        **timings.as_stats(),
    }
    if parts.stats is not None:
        parts.stats.commit(line)
    return state


def _evaluate(parts: Components) -> float:
    """Held-out reward under the current weights. Collective: rank 0 asks the servers."""
    parts.publisher.wait()
    reward = evaluate(parts.engine, parts.valid_rows, parts.eval_workflow) if parts.ranks.is_first else None
    return float(parts.ranks.from_first(reward))


def _save_recovery(parts: Components, state: RunState) -> None:
    loop = {
        "state": asdict(state),
        "loader": parts.loader.state_dict(),
        "executor": parts.engine.state_dict() if parts.ranks.is_first else None,
    }
    save_recovery(parts.run, step=state.step, policy=parts.policy, loop=loop, keep=parts.config.recover.keep)


def resume(parts: Components) -> RunState:
    """Connect the engine, and restore the newest recovery checkpoint everywhere, servers included, if there is one."""
    found = recovery_checkpoints(parts.run) if parts.config.recover.mode == "auto" else []
    found = parts.ranks.from_first(found)
    step, checkpoint = found[-1] if found else (0, None)
    if parts.stats is not None:
        parts.stats.rewind(step)
    if checkpoint is None:
        # Written although the servers start with them: one that outlived an earlier trainer holds newer weights.
        weights = parts.publisher.write(0)
        warm_up_policy(parts)
        parts.engine.initialize(vocab_size=parts.vocab_size, weights=weights)
        if parts.ranks.is_first and parts.config.valid_dataset is None:  # else the first evaluation does the same
            warm_up_servers(parts)
        return RunState()
    loop = load_loop(checkpoint)
    load_state(checkpoint, parts.policy)
    parts.policy.version = step
    parts.loader.load_state_dict(loop["loader"])
    parts.engine.initialize(vocab_size=parts.vocab_size, weights=parts.publisher.write(step))
    if parts.ranks.is_first:
        parts.engine.load_state_dict(loop["executor"])
    logger.info("going on from %s: step %d of %d", checkpoint, step, parts.total_steps)
    return RunState(**loop["state"])


def run_training(config: GRPOConfig, *, run: Path, ranks: Ranks, stop: StopSignal) -> str:
    """Train and write ``summary.json``; returns the outcome: succeeded, or stopped by a signal.

    Raises ``ValueError`` only for what a user wrote, before the first step; whatever goes wrong later is summarised as
    failed and raised.
    """
    with build_components(config, run=run, ranks=ranks) as parts:
        gc.collect()  # while the servers start
        state = resume(parts)
        gc.freeze()  # what is here now stays: later collections need not go through the model's and libraries' objects
        try:
            for state in train(parts, state, stop):  # noqa: B007, B020  the last one is what the summary tells
                pass
        except Exception as error:
            _summarise(run, ranks, state, outcome="failed", error=f"{type(error).__name__}: {error}")
            if isinstance(error, ValueError):
                raise RuntimeError(f"after step {state.step}: {error}") from error
            raise
        outcome = "succeeded" if state.step >= parts.total_steps else "stopped"
        _summarise(run, ranks, state, outcome=outcome)
    return outcome


def _summarise(run: Path, ranks: Ranks, state: RunState, **rest: str) -> None:
    if ranks.is_first:
        figures = asdict(state)
        tokens, steps = figures.pop("tokens"), figures.pop("step")
        speed = tokens / state.seconds if state.seconds else 0.0
        write_summary(run, {**rest, "steps": steps, **figures, stat_names.TOKENS_PER_SECOND: speed})


def main(arguments: Sequence[str]) -> int:
    """Run under torchrun; the exit status is 0, 2 for what a user wrote, and those of ``names`` where another rank is
    gone, or after a stop by a signal."""
    stop = StopSignal()
    stop.install()
    try:
        logs.set_up()
        config, _ = load_expr_config(list(arguments), GRPOConfig)
        run = Path(os.environ.get(names.RUN_DIR) or names.run_dir(config))
        with joined(os.environ.get(names.DEVICE, "cuda")) as ranks:
            outcome = run_training(config, run=run, ranks=ranks, stop=stop)
    except ValueError as error:
        logger.debug("what the user wrote cannot be run", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        write_termination_message(os.environ, error)
        return 2
    except RuntimeError as error:
        if not lost_another(error):
            raise
        logger.error("another rank is gone; this one cannot go on without it", exc_info=True)
        return names.EXIT_LOST_RANK
    return 0 if outcome == "succeeded" else names.EXIT_STOPPED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
