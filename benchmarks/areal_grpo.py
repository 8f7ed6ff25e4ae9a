"""``areal_grpo.py TASK RESULT.json SERVER``, run in AReaL's environment: seconds, reward and staleness of each step.

TASK is a ``benchmarks.peer.PeerTask`` as JSON, SERVER the host:port of an SGLang server on the CPU. AReaL's own
trainer, rollout and loss run in this process. Two of its functions are replaced: without that, AReaL 1.0.4 does not
train on a CPU.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from areal import PPOTrainer
from areal.api.cli_args import PPOConfig, SGLangConfig, to_structured_cfg
from areal.engine.fsdp_engine import FSDPEngine
from areal.utils import name_resolve
from datasets import Dataset
from omegaconf import OmegaConf

ANSWER = re.compile(r"####\s*(-?\d+)")
BATCH, SAMPLES, NEW_TOKENS = 32, 8, 20
MAX_TOKENS = 65536  # of a microbatch: all samples of a step fit


def reward(
    prompt: str, completions: str, prompt_ids: list[int], completion_ids: list[int], answer: str, **_: Any
) -> float:
    """1 if the number after #### equals the reference."""
    return float(_number(completions) == _number(answer))


def _number(text: str) -> int | None:
    match = ANSWER.search(text)
    return int(match[1]) if match else None


def replace_gpu_functions() -> None:
    """Build no arguments of a server that AReaL does not start; let attention of packed sequences mask by position."""
    SGLangConfig.build_args = staticmethod(lambda *_, **__: {})
    prepare = FSDPEngine._prepare_mb_list

    def prepare_without_mask(self: FSDPEngine, inputs: dict[str, Any]) -> Any:
        microbatches = prepare(self, inputs)
        for microbatch in (*microbatches.mbs, *microbatches.padded_mbs):
            microbatch["attention_mask"] = None  # a dictionary of None, for flash attention, ends in an error
        return microbatches

    FSDPEngine._prepare_mb_list = prepare_without_mask


class Clock:
    """Records what the trainer does in each step."""

    def __init__(self, trainer: PPOTrainer) -> None:
        self.seconds: list[float] = []
        self.rewards: list[float] = []
        self.staleness: list[float] = []
        self._trainer = trainer
        self._prepare, self._end = trainer.actor.prepare_batch, trainer._save_perf_tracer
        trainer.actor.prepare_batch = self._prepare_batch
        trainer._save_perf_tracer = self._end_step
        self._started = time.perf_counter()

    def _prepare_batch(self, *arguments: Any, **keywords: Any) -> Any:
        batch = self._prepare(*arguments, **keywords)
        self.rewards.append(float(torch.cat([group["rewards"].flatten() for group in batch]).float().mean()))
        version = self._trainer.actor.get_version()
        ages = [version - int(row[row >= 0].min()) for group in batch for row in group["versions"]]
        self.staleness.append(sum(ages) / len(ages))
        return batch

    def _end_step(self, *arguments: Any, **keywords: Any) -> None:
        self._end(*arguments, **keywords)
        now = time.perf_counter()
        self.seconds.append(now - self._started)
        self._started = now


def configuration(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """AReaL's recipe for asynchronous training, with the settings of the benchmark ``learning``."""
    named = {"experiment_name": "peer", "trial_name": "areal"}
    placed = {**named, "fileroot": str(folder)}
    optimizer = {"type": "adam", "lr": task["learning_rate"], "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.99}
    optimizer |= {"lr_scheduler_type": "constant", "gradient_clipping": 1.0}
    optimizer["warmup_steps_proportion"] = task["warmup_steps"] / task["steps"]
    actor = {
        **named,
        "backend": "fsdp:d1",
        "path": task["model"],
        "dtype": "float32",
        "attn_impl": "sdpa",
        "gradient_checkpointing": False,
        "mb_spec": {"max_tokens_per_mb": MAX_TOKENS},
        "weight_update_mode": "disk",
        "optimizer": optimizer,
        "ppo_n_minibatches": 1,
        "eps_clip": task["epsilon"],
        "kl_ctl": 0.0,
        "reward_norm": {"mean_level": "group", "std_level": "group", "group_size": SAMPLES},
        "adv_norm": None,
        "recompute_logprob": True,
        "use_decoupled_loss": True,
        "rejection_sampling": {"metric": "ratio", "upper": 5.0},
    }
    rollout = {
        **placed,
        "backend": "sglang:d1",
        "max_concurrent_rollouts": 64,
        "consumer_batch_size": BATCH,
        "max_head_offpolicyness": 2,
    }
    return {
        **named,
        "seed": task["seed"],
        "total_train_epochs": 10,
        "total_train_steps": task["steps"],
        "tokenizer_path": task["model"],
        "cluster": {
            "fileroot": str(folder),
            "n_gpus_per_node": 0,
            "name_resolve": {"type": "nfs", "nfs_record_root": str(folder / "names")},
        },
        "gconfig": {"n_samples": SAMPLES, "max_new_tokens": NEW_TOKENS, "temperature": 1.0},
        "rollout": rollout,
        "actor": actor,
        "train_dataset": {"path": task["data"], "type": "rl", "batch_size": BATCH, "shuffle": True},
        "saver": placed,
        "recover": {**placed, "mode": "disabled"},
        "evaluator": placed,
        "stats_logger": {**placed, "wandb": {"mode": "disabled"}},
    }


def main(task: dict[str, Any], result: Path, server: str) -> None:
    """Train with 32 prompts × 8 samples of at most 20 tokens per step, η = 2, one update per batch."""
    os.environ |= {"AREAL_SPMD_MODE": "1", "AREAL_LLM_SERVER_ADDRS": server}
    replace_gpu_functions()
    given = OmegaConf.create(configuration(task, result.parent))
    config = OmegaConf.to_object(to_structured_cfg(given, config_cls=PPOConfig))
    name_resolve.reconfigure(config.cluster.name_resolve)
    rows = [json.loads(line) for line in Path(task["data"]).read_text().splitlines()]
    dataset = Dataset.from_list(
        [{"messages": [{"role": "user", "content": row["question"]}], "answer": row["answer"]} for row in rows]
    )
    trainer = PPOTrainer(config, train_dataset=dataset)
    clock = Clock(trainer)
    trainer.train(
        workflow="areal.workflow.rlvr.RLVRWorkflow",
        workflow_kwargs={"reward_fn": reward, "gconfig": config.gconfig, "tokenizer": config.tokenizer_path},
    )
    result.write_text(json.dumps({"seconds": clock.seconds, "rewards": clock.rewards, "staleness": clock.staleness}))
    trainer.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
