"""GRPO on GSM8K as a training script: an explicit loop to copy and modify.

    grpo run examples/gsm8k/gsm8k_grpo.py --config examples/gsm8k/experiment.yaml

Custom data, rewards and workflows need no script: set train_dataset.path, reward.path and workflow.path. Use a script
for a custom loop. Unlike the built-in one, this loop has no recovery checkpoints, no periodic evaluation and does not
publish weights in the background.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.distributed import split_dataset_by_node
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import PreTrainedTokenizerBase

from areal_api import names
from areal_api.config import GRPOConfig
from areal_api.data_config import DatasetConfig
from areal_api.load import load_expr_config
from areal_trainer.batch import PackedBatch, pack
from areal_trainer.components import make_publisher
from areal_trainer.data.dataset import load_hf_tokenizer
from areal_trainer.data.loader import as_list
from areal_trainer.engine import RemoteSGLangEngine
from areal_trainer.grpo import compute_advantages
from areal_trainer.model.policy import Policy
from areal_trainer.ranks import Ranks, joined
from areal_trainer.reward.gsm8k import extract_answer, extract_solution
from areal_trainer.rollout.make_workflow import vocabulary_size
from areal_trainer.rollout.workflow import RLVRWorkflow
from areal_trainer.stats.logger import StatsLogger, Timings, write_summary


def process_gsm8k_rl_dataset(dataset: Dataset, instruction: str) -> Dataset:
    """Convert questions to messages."""

    def process(sample: dict[str, Any]) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": f"{sample['question']}\n{instruction}"}]}

    return dataset.map(process).remove_columns(["question"])


def get_gsm8k_dataset(config: DatasetConfig, split: str, rank: int, world_size: int) -> Dataset:
    """This rank's part of a split, from the hub or from a directory with one file per split."""
    dataset = load_dataset(path=config.path, name=config.name, split=split)
    if config.limit is not None:
        dataset = dataset.select(range(min(config.limit, len(dataset))))
    dataset = split_dataset_by_node(dataset, rank=rank, world_size=world_size)
    return process_gsm8k_rl_dataset(dataset, config.instruction)


def gsm8k_reward_fn(
    prompt: str, completions: str, prompt_ids: list[int], completion_ids: list[int], answer: str, **kwargs: Any
) -> float:
    """1 if the final answer equals the reference as text. The built-in reward also compares numbers."""
    sol = extract_answer(completions, data_name="math")
    ans = extract_solution(solution_str=answer, method="strict")
    if sol is None or ans is None:
        return 0
    return int(sol.strip() == ans.strip())


def main(args: Sequence[str]) -> None:
    """Evaluate, train to the last step, evaluate, save."""
    config, _ = load_expr_config(args, GRPOConfig)
    run = Path(os.environ.get(names.RUN_DIR) or names.run_dir(config))
    with joined(os.environ.get(names.DEVICE, "cuda"), config.actor.parallel) as ranks, ExitStack() as stack:
        tokenizer = load_hf_tokenizer(config.tokenizer)
        train_dataloader = StatefulDataLoader(
            get_gsm8k_dataset(config.train_dataset, "train", ranks.data_rank, ranks.data_size),
            batch_size=config.train_dataset.batch_size // ranks.data_size,
            shuffle=config.train_dataset.shuffle,
            num_workers=config.train_dataset.num_workers,
            collate_fn=as_list,
            drop_last=config.train_dataset.drop_last,
        )
        max_steps = config.total_train_steps or config.total_train_epochs * len(train_dataloader)
        workflow = RLVRWorkflow(reward_fn=gsm8k_reward_fn, gconfig=config.gconfig, tokenizer=tokenizer)
        rollout = RemoteSGLangEngine(
            config.rollout,
            batch_size=config.consumer_batch_size,
            max_staleness=config.max_staleness,
            total_batches=max_steps,
        )
        rollout.initialize(vocab_size=vocabulary_size(config.actor.path))
        stack.callback(rollout.destroy)
        actor = Policy(config.actor, device=ranks.device.type, total_steps=max_steps, seed=config.seed)
        publisher = make_publisher(config, actor, rollout if ranks.is_first else None, run=run, ranks=ranks)
        stack.callback(publisher.close)

        record = Record(config, run, ranks)
        stack.callback(record.close)
        record.evaluated(held_out_reward(config, rollout, tokenizer, ranks))
        data_generator = iter(train_dataloader)
        for global_step in range(max_steps):
            timings = Timings()
            with timings.stage("rollout"):
                if config.async_training:
                    trajectories = rollout.prepare_batch(train_dataloader, workflow=workflow)
                else:
                    try:
                        data = next(data_generator)
                    except StopIteration:
                        data_generator = iter(train_dataloader)
                        data = next(data_generator)
                    trajectories = rollout.rollout_batch(data, workflow=workflow)
            stats = train_step(config, actor, pack(trajectories), ranks, timings)
            with timings.stage("update_weights"):
                actor.version = global_step + 1
                publisher.publish(actor.version, wait=True)
            record.step(actor.version, max_steps, {**stats, **rollout.statistics, **timings.as_stats()})
        actor.save_hf(names.checkpoint_dir(run, config.total_train_epochs, max_steps))
        record.evaluated(held_out_reward(config, rollout, tokenizer, ranks))
        record.summarize()


def train_step(
    config: GRPOConfig, actor: Policy, batch: PackedBatch, ranks: Ranks, timings: Timings
) -> dict[str, float]:
    """Proximal log-probs, advantages, update. There is no reference model, so actor.kl_ctl must be 0."""
    if config.actor.kl_ctl > 0:
        raise ValueError(f"actor.kl_ctl is {config.actor.kl_ctl}, but this script has no reference model; set it to 0")
    logp_T = None  # the servers' log-probs
    if config.actor.use_decoupled_loss or config.actor.recompute_logprob:
        with timings.stage("recompute_logp"):
            logp_T = actor.logprobs(batch)
    with timings.stage("compute_advantage"):
        advantages_T, stats = compute_advantages(
            batch, config.actor, config.gconfig, logp_T=logp_T, ref_logp_T=None, reduce=ranks.reduce_sum
        )
    with timings.stage("train_step"):
        return stats | actor.update(batch, advantages_T=advantages_T, prox_logp_T=logp_T)


def held_out_reward(
    config: GRPOConfig, rollout: RemoteSGLangEngine, tokenizer: PreTrainedTokenizerBase, ranks: Ranks
) -> float | None:
    """Mean reward on valid_dataset with the servers' weights, on every rank; None without a valid_dataset."""
    if config.valid_dataset is None:
        return None
    reward = None
    if ranks.is_first:
        rows = list(get_gsm8k_dataset(config.valid_dataset, "test", rank=0, world_size=1))
        workflow = RLVRWorkflow(reward_fn=gsm8k_reward_fn, gconfig=config.evaluation, tokenizer=tokenizer)
        episodes = rollout.run_episodes(rows, workflow)
        rewards = [sample.reward for episode in episodes for sample in episode]
        if not rewards:
            raise ValueError("evaluation has no sample: every episode on valid_dataset was rejected or failed")
        reward = sum(rewards) / len(rewards)
    return float(ranks.from_first(reward))


class Record:
    """stats.jsonl and summary.json, written by rank 0."""

    def __init__(self, config: GRPOConfig, run: Path, ranks: Ranks) -> None:
        self._run = run
        self._started = time.monotonic()
        self._tokens = 0.0
        self._rewards: list[float] = []
        self._evaluations: list[float] = []
        self._logger: StatsLogger | None = None
        if ranks.is_first:
            run_names = {"experiment_name": config.experiment_name, "trial_name": config.trial_name}
            self._logger = StatsLogger(run, config.stats_logger, **run_names)
            self._logger.rewind(0)

    def evaluated(self, reward: float | None) -> None:
        """Record a held-out reward."""
        self._evaluations += [] if reward is None else [reward]

    def step(self, step: int, max_steps: int, stats: dict[str, float]) -> None:
        """Write the statistics of a step."""
        self._tokens += stats["n_tokens"]
        self._rewards.append(stats["task_reward/avg"])
        line = {"step": step, "version": step, "total_steps": max_steps, "time": time.monotonic() - self._started}
        if self._logger is not None:
            self._logger.commit({**line, **stats})

    def summarize(self) -> None:
        """Write summary.json."""
        seconds = time.monotonic() - self._started
        first_and_last = {
            f"{name}_{end}": values[index] if values else None
            for name, values in (("reward", self._rewards), ("eval", self._evaluations))
            for end, index in (("first", 0), ("last", -1))
        }
        figures = {"steps": len(self._rewards), "seconds": seconds, "tokens_per_second": self._tokens / seconds}
        if self._logger is not None:
            write_summary(self._run, {"outcome": "succeeded", **first_and_last, **figures})

    def close(self) -> None:
        """Close the loggers."""
        if self._logger is not None:
            self._logger.close()


if __name__ == "__main__":
    main(sys.argv[1:])
