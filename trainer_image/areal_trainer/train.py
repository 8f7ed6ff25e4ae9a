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

from areal_api import logs, names
from areal_api.config import GRPOConfig
from areal_api.load import load_expr_config
from areal_trainer.batch import PackedBatch, pack
from areal_trainer.checkpoint import Due, load_loop, load_state, recovery_checkpoints, save_recovery
from areal_trainer.components import Parts, assemble
from areal_trainer.evaluate import evaluate
from areal_trainer.grpo import compute_advantages
from areal_trainer.ranks import Ranks, joined, lost_another
from areal_trainer.rollout.executor import Interrupted
from areal_trainer.stats.logger import Timings, write_summary
from areal_trainer.stats.operator_sink import say_why
from areal_trainer.stop import StopSignal
from areal_trainer.warm_up import warm_up_policy, warm_up_servers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Where a run stands; a part of every recovery checkpoint."""

    step: int = 0  # finished steps, and the version of the weights
    seconds: float = 0.0  # since the first step began, less the time between an end and the resume
    tokens: int = 0  # trained, prompts included
    reward_first: float | None = None
    reward_last: float | None = None
    eval_first: float | None = None
    eval_last: float | None = None


def train(parts: Parts, progress: Progress, stop: StopSignal) -> Iterator[Progress]:
    """Train from ``progress`` until the last step or until ``stop`` is set; yields how far the run is, step by step."""
    stop.wakes(parts.engine.interrupt)
    if progress.step == 0 and parts.config.valid_dataset is not None:
        reward = _evaluate(parts)
        progress = replace(progress, eval_first=reward, eval_last=reward)
    dues, timings = _Dues.of(parts), Timings()
    dues.recovered_at = progress.step or -1
    while progress.step < parts.total_steps:
        began = time.monotonic()
        try:
            with timings.stage("rollout"):
                trajectories = parts.engine.prepare_batch(parts.loader, parts.workflow, parts.accept)
        except Interrupted:
            break
        stats = train_step(parts, pack(trajectories), timings)
        progress = _after_step(parts, progress, dues, stats, timings, began)
        yield progress
        timings = Timings()
        if parts.config.recover.mode == "auto" and dues.recover.at(progress.step):
            # After the statistics were written: a checkpoint never stands for a step whose line could be lost.
            with timings.stage("checkpoint_for_recover"):
                _save_recovery(parts, progress)
            dues.recovered_at = progress.step
        if parts.ranks.any(stop.requested()):
            break
    parts.publisher.wait()
    if parts.config.recover.mode == "auto" and dues.recovered_at != progress.step:
        _save_recovery(parts, progress)


def train_step(parts: Parts, batch: PackedBatch, timings: Timings) -> dict[str, float]:
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
class _Dues:
    """What else is due after a step."""

    save: Due
    recover: Due
    evaluate: Due
    recovered_at: int = -1

    @classmethod
    def of(cls, parts: Parts) -> _Dues:
        def due(frequency: Any) -> Due:
            return Due(frequency, steps_per_epoch=parts.steps_per_epoch, now=time.monotonic)

        return cls(due(parts.config.saver), due(parts.config.recover), due(parts.config.evaluator))


def _after_step(
    parts: Parts, progress: Progress, dues: _Dues, stats: dict[str, float], timings: Timings, began: float
) -> Progress:
    """Evaluate, save and checkpoint where due, and commit the statistics of the step."""
    step = progress.step + 1
    last = step == parts.total_steps
    line: dict[str, float] = {"step": step, "version": step, "total_steps": parts.total_steps}
    if (dues.evaluate.at(step) or last) and parts.config.valid_dataset is not None:
        with timings.stage("eval"):
            progress = replace(progress, eval_last=_evaluate(parts))
        line["eval-rollout/reward"] = progress.eval_last or 0.0
    if step == 1 and progress.eval_first is not None:
        line["eval-rollout/reward_initial"] = progress.eval_first
    if dues.save.at(step) or last:
        with timings.stage("save"):
            epoch = -(-step // parts.steps_per_epoch)
            parts.policy.save_hf(names.checkpoint_dir(parts.run, epoch, step))
    seconds = time.monotonic() - began
    progress = replace(
        progress,
        step=step,
        seconds=progress.seconds + seconds,
        tokens=progress.tokens + int(stats["n_tokens"]),
        reward_first=stats["task_reward/avg"] if progress.reward_first is None else progress.reward_first,
        reward_last=stats["task_reward/avg"],
    )
    line |= {
        "time": progress.seconds,
        "seconds_per_step": seconds,
        "tokens_per_second": stats["n_tokens"] / seconds,
        **stats,
        **parts.engine.statistics,
        **timings.as_stats(),
    }
    if parts.stats is not None:
        parts.stats.commit(line)
    return progress


def _evaluate(parts: Parts) -> float:
    """Held-out reward under the current weights. Collective: rank 0 asks the servers."""
    parts.publisher.wait()
    reward = evaluate(parts.engine, parts.valid_rows, parts.eval_workflow) if parts.ranks.is_first else None
    return float(parts.ranks.from_first(reward))


def _save_recovery(parts: Parts, progress: Progress) -> None:
    loop = {
        "progress": asdict(progress),
        "loader": parts.loader.state_dict(),
        "executor": parts.engine.state_dict() if parts.ranks.is_first else None,
    }
    save_recovery(parts.run, step=progress.step, policy=parts.policy, loop=loop, keep=parts.config.recover.keep)


def resume(parts: Parts) -> Progress:
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
        return Progress()
    loop = load_loop(checkpoint)
    load_state(checkpoint, parts.policy)
    parts.policy.version = step
    parts.loader.load_state_dict(loop["loader"])
    parts.engine.initialize(vocab_size=parts.vocab_size, weights=parts.publisher.write(step))
    if parts.ranks.is_first:
        parts.engine.load_state_dict(loop["executor"])
    logger.info("going on from %s: step %d of %d", checkpoint, step, parts.total_steps)
    return Progress(**loop["progress"])


def run_training(config: GRPOConfig, *, run: Path, ranks: Ranks, stop: StopSignal) -> str:
    """Train and write ``summary.json``; returns the outcome: succeeded, or stopped by a signal.

    Raises ``ValueError`` only for what a user wrote, before the first step; whatever goes wrong later is summarised as
    failed and raised.
    """
    with assemble(config, run=run, ranks=ranks) as parts:
        gc.collect()  # while the servers start
        progress = resume(parts)
        gc.freeze()  # what is here now stays: later collections need not go through the model's and libraries' objects
        try:
            for progress in train(parts, progress, stop):  # noqa: B007, B020  the last one is what the summary tells
                pass
        except Exception as error:
            _summarise(run, ranks, progress, outcome="failed", error=f"{type(error).__name__}: {error}")
            if isinstance(error, ValueError):
                raise RuntimeError(f"after step {progress.step}: {error}") from error
            raise
        outcome = "succeeded" if progress.step >= parts.total_steps else "stopped"
        _summarise(run, ranks, progress, outcome=outcome)
    return outcome


def _summarise(run: Path, ranks: Ranks, progress: Progress, **rest: str) -> None:
    if ranks.is_first:
        figures = asdict(progress)
        tokens, steps = figures.pop("tokens"), figures.pop("step")
        speed = tokens / progress.seconds if progress.seconds else 0.0
        write_summary(run, {**rest, "steps": steps, **figures, "tokens_per_second": speed})


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
        say_why(os.environ, error)
        return 2
    except RuntimeError as error:
        if not lost_another(error):
            raise
        logger.error("another rank is gone; this one cannot go on without it", exc_info=True)
        return names.EXIT_LOST_RANK
    return 0 if outcome == "succeeded" else names.EXIT_STOPPED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
