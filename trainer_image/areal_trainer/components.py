"""The components of a run, constructed from its configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import torch
from transformers import PreTrainedTokenizerBase

from areal_api import names
from areal_api.config import GRPOConfig
from areal_trainer.algo.filters import rewards_differ
from areal_trainer.data.dataset import PromptLoader, load_hf_tokenizer, train_loader
from areal_trainer.data.tokenizer import TokenTexts
from areal_trainer.engine import RemoteSGLangEngine, api_key
from areal_trainer.evaluation.evaluator import Evaluator
from areal_trainer.evaluation.prepare import prepared_evaluator
from areal_trainer.model.policy import Policy, ReferenceModel
from areal_trainer.publisher import Publisher
from areal_trainer.ranks import Ranks
from areal_trainer.recovery_writer import RecoveryWriter
from areal_trainer.reward.weighted import Reward
from areal_trainer.rollout.dump import RolloutDump
from areal_trainer.rollout.episode import Accept
from areal_trainer.rollout.make_workflow import Workflows, vocabulary_size
from areal_trainer.rollout.workflow import RolloutWorkflow
from areal_trainer.stats.logger import StatsLogger
from areal_trainer.trajectory import Trajectory
from areal_trainer.weights.file_server import FileServer


@dataclass(frozen=True)
class Components:
    """Everything the training loop uses. The engine is not connected yet."""

    config: GRPOConfig
    run: Path
    ranks: Ranks
    policy: Policy
    reference: ReferenceModel | None
    engine: RemoteSGLangEngine
    publisher: Publisher
    recovery: RecoveryWriter
    loader: PromptLoader
    workflow: RolloutWorkflow
    evaluator: Evaluator | None  # on rank 0, with a valid_dataset
    agent_statistics: Callable[[], dict[str, float]]  # since the last call; on rank 0
    reward_statistics: Callable[[], dict[str, float]]  # of judges, on rank 0
    accept: Accept | None
    stats: StatsLogger | None  # on rank 0
    rollouts: RolloutDump | None  # on rank 0, if samples are written
    vocab_size: int
    steps_per_epoch: int
    total_steps: int


@contextmanager
def build_components(config: GRPOConfig, *, run: Path, ranks: Ranks) -> Iterator[Components]:
    """Construct the components of a run, and close them at the end.

    Raises ``ValueError`` for a configuration that cannot be satisfied.
    """
    with ExitStack() as stack:
        stats = stack.enter_context(_stats_logger(config, run)) if ranks.is_first else None
        tokenizer = load_hf_tokenizer(config.tokenizer)
        template_kwargs = config.workflow.kwargs.get("chat_template_kwargs")
        loader = train_loader(
            config.train_dataset,
            tokenizer,
            seed=config.seed,
            rank=ranks.data_rank,
            world_size=ranks.data_size,
            chat_template_kwargs=template_kwargs,
            mix=config.train_mix,
        )
        total_steps = _total_steps(config, steps_per_epoch=len(loader))
        engine = _engine(config, total_steps=total_steps)
        stack.callback(engine.destroy)
        reward = Reward.of(config.reward, run=run if ranks.is_first else None)
        stack.callback(reward.close)  # before the engine, whose event loop it uses
        workflows = Workflows(config, engine, tokenizer, reward)
        stack.callback(workflows.close)
        evaluator = None
        if ranks.is_first:  # their processes import modules while the model loads
            reward.start()
            workflows.start()
            directory = names.evaluations_dir(run)
            evaluator = stack.enter_context(
                prepared_evaluator(config, workflows, reward, tokenizer, directory=directory)
            )
        policy = Policy(
            config.actor,
            device=ranks.device.type,
            total_steps=total_steps,
            seed=config.seed,
            tokenizer_path=config.tokenizer,
            kl_penalty=config.kl_penalty,
        )
        policy.check_exactness()
        publisher = make_publisher(config, policy, engine if ranks.is_first else None, run=run, ranks=ranks)
        stack.callback(publisher.close)
        if ranks.is_first and (weights_url := os.environ.get(names.WEIGHTS_URL)):
            port = urlsplit(weights_url).port or 0
            stack.enter_context(FileServer(names.weights_dir(run), port=port, api_key=api_key()))
        recovery = RecoveryWriter(run, keep=config.recover.keep)
        stack.callback(recovery.close)
        rollouts = _rollout_dump(config, tokenizer, run=run) if ranks.is_first else None
        if rollouts is not None:
            stack.callback(rollouts.close)
        yield Components(
            config=config,
            run=run,
            ranks=ranks,
            policy=policy,
            reference=_reference(config, ranks),
            engine=engine,
            publisher=publisher,
            recovery=recovery,
            loader=loader,
            workflow=workflows.training,
            evaluator=evaluator,
            agent_statistics=workflows.statistics,
            reward_statistics=reward.statistics,
            accept=_has_signal if config.actor.dynamic_sampling else None,
            stats=stats,
            rollouts=rollouts,
            vocab_size=vocabulary_size(config.actor.path),
            steps_per_epoch=len(loader),
            total_steps=total_steps,
        )


def _engine(config: GRPOConfig, *, total_steps: int) -> RemoteSGLangEngine:
    return RemoteSGLangEngine(
        config.rollout,
        batch_size=config.consumer_batch_size,
        max_staleness=config.max_staleness,
        total_batches=total_steps,
    )


def _rollout_dump(config: GRPOConfig, tokenizer: PreTrainedTokenizerBase, *, run: Path) -> RolloutDump | None:
    if not config.rollout.dump_to_file:
        return None
    return RolloutDump(
        names.rollouts_dir(run), max_bytes=config.rollout.dump_max_bytes, token_texts=TokenTexts(tokenizer)
    )


def _total_steps(config: GRPOConfig, *, steps_per_epoch: int) -> int:
    steps = steps_per_epoch * config.total_train_epochs
    return steps if config.total_train_steps is None else min(steps, config.total_train_steps)


def make_publisher(
    config: GRPOConfig, policy: Policy, engine: RemoteSGLangEngine | None, *, run: Path, ranks: Ranks
) -> Publisher:
    """A publisher that converts weights to the dtype the servers compute in."""
    dtype = config.actor.dtype if config.sglang.dtype == "auto" else config.sglang.dtype
    return Publisher(
        policy,
        engine,
        mode=config.actor.weight_update_mode,
        run=run,
        dtype=getattr(torch, dtype),
        ranks=ranks,
        deltas=config.actor.weight_deltas,
        timeout_s=config.rollout.broadcast_timeout,
    )


def _reference(config: GRPOConfig, ranks: Ranks) -> ReferenceModel | None:
    if config.actor.kl_ctl == 0:
        return None
    reference = ReferenceModel(
        config.ref or config.actor,
        temperature=config.actor.temperature,
        device=ranks.device.type,
        expert_ranks=config.actor.parallel.expert,
    )
    reference.check_exactness()
    return reference


def _stats_logger(config: GRPOConfig, run: Path) -> StatsLogger:
    return StatsLogger(
        run,
        config.stats_logger,
        experiment_name=config.experiment_name,
        trial_name=config.trial_name,
        settings=config.model_dump(mode="json"),
    )


def _has_signal(group: list[Trajectory]) -> bool:
    return rewards_differ([trajectory.reward for trajectory in group])
