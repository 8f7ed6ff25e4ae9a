"""The training loop: ``torchrun -m areal_trainer.train`` with ``AREAL_CONFIG`` and ``AREAL_LLM_SERVER_ADDRS``.

A step is rollout, log-probs, advantages, update, publish: ``train_step`` has a line for each. The rest of this file
handles recovery, evaluation, checkpoints and the summary of the run.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from areal_api import health, logs, names, stat_names
from areal_api.config import GRPOConfig
from areal_api.frequency import Frequency
from areal_api.load import load_expr_config
from areal_api.stat_names import ACTOR_PREFIX
from areal_trainer.batch import PackedBatch, pack
from areal_trainer.checkpoint import RunState, Schedule
from areal_trainer.components import Components, build_components
from areal_trainer.evaluation.evaluator import Evaluation
from areal_trainer.grpo import compute_advantages
from areal_trainer.health import Health, HealthMonitor
from areal_trainer.profiling import check_profiling, profiled
from areal_trainer.ranks import Ranks, joined, lost_another
from areal_trainer.recovery import CollapseError, begin_checkpoint, collapse_message, resume, roll_back
from areal_trainer.rollout.dump import StepSamples
from areal_trainer.rollout.episode import Interrupted
from areal_trainer.stats.logger import Timings, write_summary
from areal_trainer.stats.operator_sink import write_termination_message
from areal_trainer.stop import StopSignal
from areal_trainer.storage.bucket import bucket_of_run
from areal_trainer.storage.mirror import mirrored
from areal_trainer.tracing import span, tracing
from areal_trainer.weights.finite import NonFiniteWeightsError

logger = logging.getLogger(__name__)


def train(parts: Components, state: RunState, stop: StopSignal) -> Iterator[RunState]:
    """Train from ``state`` until the last step or until ``stop`` is set; yields the state after every step."""
    stop.wakes(parts.engine.interrupt)
    schedules, timings = Schedules.of(parts), Timings()
    try:
        if state.step == 0 and parts.config.valid_dataset is not None:
            state, statistics = _evaluate(parts, state)
            state = replace(state, eval_first=state.eval_last)
            schedules.initial = {f"{name}{stat_names.INITIAL}": value for name, value in statistics.items()}
        elif state.held is not None:
            state = _commit_held(parts, state)
            yield state
    except Interrupted:
        logger.info("the evaluation is interrupted; a resume repeats it")  # and no batch is prepared either
    schedules.recovered_at = state.step or -1
    monitor = _monitor(parts, state)
    while state.step < parts.total_steps:
        began = time.monotonic()
        step = state.step + 1
        with span("step", step=step, thread="training"):
            try:
                with timings.stage("rollout"):
                    trajectories = parts.engine.prepare_batch(parts.loader, parts.workflow, parts.accept)
            except Interrupted:
                break
            with profiled(parts.config.tracing, run=parts.run, ranks=parts.ranks, step=step):
                stats = train_step(parts, pack(trajectories), timings, step=step)
        found = monitor.observe(stats)
        state = _after_step(parts, state, schedules, stats | found.statistics, timings, began)
        state = replace(state, reward_best=found.reward_best, reward_best_error=found.reward_best_error)
        state = replace(state, collapsed=found.collapsed)
        yield state
        _report_health(parts, state, found)  # before a checkpoint of a collapsed policy is written
        timings = Timings()
        if found.collapsed and parts.config.actor.on_collapse == "rollback":
            state = roll_back(parts, state, precursor_age=found.precursor_age)
            yield state
            monitor, timings = _monitor(parts, state), Timings()
            schedules.recovered_at = state.step
            continue
        # After the statistics are on disk, so that every checkpoint has the lines of all its steps.
        if schedules.recovery_is_due(parts, state.step):
            with timings.stage("checkpoint_for_recover"):
                begin_checkpoint(parts, state)
            schedules.recovered_at = state.step
        if parts.ranks.any(stop.requested()):
            break
    parts.publisher.wait()
    if parts.config.recover.mode == "auto" and schedules.recovered_at != state.step:
        begin_checkpoint(parts, state)
    if parts.rollouts is not None:
        parts.rollouts.flush()
    parts.recovery.wait()


def train_step(parts: Components, batch: PackedBatch, timings: Timings, *, step: int) -> dict[str, float]:
    """Update the policy on ``batch`` and publish it as the next version; returns the statistics of step ``step``.

    Raises ``RuntimeError``, and publishes nothing, after an update with non-finite gradients or weights.
    """
    config, policy = parts.config.actor, parts.policy
    prox_logp_T = ref_logp_T = None
    recomputes = config.use_decoupled_loss or config.recompute_logprob
    if policy.needs_logprobs or (recomputes and parts.reference is not None):  # of the KL penalty
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
    _require_finite(parts, stats)
    policy.version += 1
    with timings.stage("update_weights"):
        parts.publisher.publish(policy.version, wait=parts.config.max_staleness == 0)
    if parts.config.rollout.dump_to_file:
        with timings.stage("dump_rollouts"):
            stats |= _dump_rollouts(parts, batch, advantages_T, step=step)
    return stats


def _dump_rollouts(parts: Components, batch: PackedBatch, advantages_T: Tensor, *, step: int) -> dict[str, float]:
    """Write the samples of all ranks in the background; statistics on rank 0. Collective."""
    advantages = np.split(advantages_T.numpy(), batch.cu_seqlens[1:-1].numpy())[: len(batch)]
    shares = parts.ranks.objects_to_first(([one.without_experts() for one in batch.trajectories], advantages))
    if parts.rollouts is None:
        return {}
    return parts.rollouts.add(
        StepSamples(
            step,
            epoch=-(-step // parts.steps_per_epoch),
            version=parts.policy.version - 1,
            trained=[trajectory for trajectories, _ in shares for trajectory in trajectories],
            advantages=[one for _, share in shares for one in share],
            rejected=parts.engine.take_rejected(),
        )
    )


def _monitor(parts: Components, state: RunState) -> HealthMonitor:
    best, error = state.reward_best, state.reward_best_error
    return HealthMonitor(prompts=parts.config.consumer_batch_size, reward_best=best, reward_best_error=error)


def _report_health(parts: Components, state: RunState, found: Health) -> None:
    """Log warnings. Raises ``CollapseError`` on every rank after a collapse with ``actor.on_collapse`` stop."""
    if parts.ranks.is_first:
        for warning in found.warnings.values():
            logger.warning("step %d: %s", state.step, warning)
    if found.collapsed and parts.config.actor.on_collapse == "stop":
        raise CollapseError(collapse_message(state))


def _require_finite(parts: Components, stats: dict[str, float]) -> None:
    """Raise ``RuntimeError`` on every rank if an update had non-finite gradients or weights. Collective."""
    policy = parts.policy
    reason = ""
    if stats[f"{ACTOR_PREFIX}nonfinite_minibatches"]:
        reason = "the loss or its gradient is not finite"
    try:
        policy.require_finite()
    except NonFiniteWeightsError as error:
        reason = str(error)
    if reason:
        raise RuntimeError(
            f"the update to version {policy.version + 1} failed: {reason}. Version {policy.version} stays published. "
            f"Lower actor.optimizer.lr ({parts.config.actor.optimizer.lr:g}) or actor.optimizer.gradient_clipping, or "
            "check the rewards; the same command resumes from the last recovery checkpoint"
        )


@dataclass
class Schedules:
    """Schedules of the periodic tasks after a step."""

    save: Schedule
    recover: Schedule
    evaluate: Schedule
    initial: dict[str, float] = field(default_factory=dict)  # statistics of the evaluation before the first step
    recovered_at: int = -1
    recovery_postponed: bool = False  # the previous checkpoint was still being written when one was due

    @classmethod
    def of(cls, parts: Components) -> Schedules:
        def schedule(frequency: Frequency) -> Schedule:
            return Schedule(frequency, steps_per_epoch=parts.steps_per_epoch)

        return cls(schedule(parts.config.saver), schedule(parts.config.recover), schedule(parts.config.evaluator))

    def recovery_is_due(self, parts: Components, step: int) -> bool:
        """Whether to begin a recovery checkpoint after ``step`` steps. Collective.

        One that falls due while another is being written begins after the first step that finds it complete.
        """
        if parts.config.recover.mode == "disabled":
            return False
        parts.recovery.raise_failure()
        due = self.recover.at(step) or self.recovery_postponed
        self.recovery_postponed = due and not parts.recovery.idle()
        return due and not self.recovery_postponed


def _after_step(
    parts: Components, state: RunState, schedules: Schedules, stats: dict[str, float], timings: Timings, began: float
) -> RunState:
    """Save and evaluate if due, and commit the statistics of the step."""
    step = state.step + 1
    last = step == parts.total_steps
    total = parts.total_steps
    line: dict[str, float] = {stat_names.STEP: step, stat_names.TOTAL_STEPS: total}
    line |= {stat_names.VERSION: step + state.version_offset, health.ROLLBACKS: state.rollbacks}
    # Save before evaluating, so that a failed evaluation does not lose the weights.
    if schedules.save.at(step) or last:
        with timings.stage("save"):
            epoch = -(-step // parts.steps_per_epoch)
            parts.policy.save_hf(names.checkpoint_dir(parts.run, epoch, step))
    interrupted = False
    if (schedules.evaluate.at(step) or last) and parts.config.valid_dataset is not None:
        try:
            with timings.stage("eval"):
                state, found = _evaluate(parts, replace(state, step=step))
            line |= found
        except Interrupted:
            interrupted = True
    if step == 1:
        line |= schedules.initial
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
        **parts.agent_statistics(),
        **parts.reward_statistics(),
        **timings.as_stats(),
    }
    if interrupted and parts.config.recover.mode == "auto":
        logger.info("the evaluation after step %d is interrupted; a resume repeats it", step)
        return replace(state, held=line)
    if parts.stats is not None:
        parts.stats.commit(line)
    return state


def _commit_held(parts: Components, state: RunState) -> RunState:
    """Repeat the evaluation after the last step, which a signal ended, and commit the statistics of the step."""
    assert state.held is not None
    line = state.held
    if parts.config.valid_dataset is not None:
        state, found = _evaluate(parts, state)
        line = line | found
    if parts.stats is not None:
        parts.stats.commit(line)
    return replace(state, held=None)


def _evaluate(parts: Components, state: RunState) -> tuple[RunState, dict[str, float]]:
    """Evaluate the current weights, those after ``state.step`` steps, and save the model if it is the best so far.

    Collective; rank 0 queries the servers and has the statistics. Raises ``Interrupted`` on every rank if a signal ends
    it.
    """
    parts.publisher.wait()
    found: Evaluation | None = None
    if parts.evaluator is not None:
        with contextlib.suppress(Interrupted):
            found = parts.evaluator.evaluate(parts.engine.run_episodes, step=state.step)
    reward = parts.ranks.from_first(None if found is None else found.reward)
    if reward is None:
        raise Interrupted
    state = replace(state, eval_last=float(reward))
    if state.eval_best is None or reward > state.eval_best:
        state = replace(state, eval_best=float(reward), eval_best_step=state.step)
        if parts.config.evaluator.save_best:
            parts.policy.save_hf(names.best_checkpoint_dir(parts.run))
    return state, {} if found is None else found.statistics


def run_training(config: GRPOConfig, *, run: Path, ranks: Ranks, stop: StopSignal) -> str:
    """Train and write ``summary.json``; returns the outcome: succeeded, or stopped by a signal.

    Raises ``ValueError`` for configuration errors, before the first step only. Later errors are summarised as failed
    and raised; ``CollapseError``, also at the end of a run whose policy collapsed, as collapsed.
    """
    check_profiling(config.tracing, ranks)
    resource: dict[str, str | int] = {"areal.experiment": config.experiment_name, "areal.trial": config.trial_name}
    bucket = bucket_of_run(config.experiment_name, config.trial_name) if ranks.is_first else None
    with (
        tracing(config.tracing, run=run, rank=ranks.rank, resource=resource),
        mirrored(run, bucket, resumes=config.recover.mode == "auto") as mirror,
        build_components(config, run=run, ranks=ranks) as parts,
    ):
        gc.collect()  # while the servers start
        state = resume(parts)
        gc.freeze()  # exclude the long-lived objects of model and libraries from later collections
        try:
            for state in train(parts, state, stop):  # noqa: B007, B020  the summary uses the last one
                pass
        except Exception as error:
            outcome = "collapsed" if isinstance(error, CollapseError) else "failed"
            _summarise(run, ranks, state, outcome=outcome, error=f"{type(error).__name__}: {error}")
            if isinstance(error, ValueError):
                raise RuntimeError(f"after step {state.step}: {error}") from error
            raise
        if state.step >= parts.total_steps and state.collapsed:
            message = collapse_message(state)
            _summarise(run, ranks, state, outcome="collapsed", error=message)
            raise CollapseError(message)
        outcome = "succeeded" if state.step >= parts.total_steps and state.held is None else "stopped"
        _summarise(run, ranks, state, outcome=outcome)
        if mirror is not None:
            mirror.finish()
    return outcome


def _summarise(run: Path, ranks: Ranks, state: RunState, **rest: str) -> None:
    if ranks.is_first:
        figures = asdict(state)
        internal = ("version_offset", "held", "reward_best_error")
        tokens, steps, *_ = (figures.pop(name) for name in ("tokens", "step", *internal))
        speed = tokens / state.seconds if state.seconds else 0.0
        write_summary(run, {**rest, "steps": steps, **figures, stat_names.TOKENS_PER_SECOND: speed})


def main(arguments: Sequence[str]) -> int:
    """Run under torchrun. Exit status: 0, 2 for what a retry cannot change (a configuration error, a collapse),
    ``names.EXIT_LOST_RANK`` or ``names.EXIT_STOPPED`` (by a signal)."""
    stop = StopSignal()
    stop.install()
    try:
        logs.set_up()
        config, _ = load_expr_config(list(arguments), GRPOConfig)
        run = Path(os.environ.get(names.RUN_DIR) or names.run_dir(config))
        with joined(os.environ.get(names.DEVICE, "cuda"), config.actor.parallel) as ranks:
            outcome = run_training(config, run=run, ranks=ranks, stop=stop)
    except ValueError as error:
        logger.debug("the configuration cannot be run", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        write_termination_message(os.environ, error)
        return 2
    except CollapseError as error:
        print(f"error: {error}", file=sys.stderr)
        write_termination_message(os.environ, error)
        return 2
    except RuntimeError as error:
        if not lost_another(error):
            raise
        logger.error("another rank was lost, and this one cannot continue without it", exc_info=True)
        return names.EXIT_LOST_RANK
    return 0 if outcome == "succeeded" else names.EXIT_STOPPED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
