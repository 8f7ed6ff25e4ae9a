"""``areal_grpo.py SETTINGS RESULT.json SERVER``, run in AReaL's environment: seconds, reward and staleness of steps.

SETTINGS is AReaL's configuration as JSON, SERVER the host:port of an SGLang server on the CPU. AReaL's own trainer,
rollout and loss run in this process. Two of its functions are replaced: without that, AReaL 1.0.4 does not train on a
CPU.
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


def main(settings: dict[str, Any], result: Path, server: str) -> None:
    """Train as ``settings`` say, and write the seconds, rewards and staleness of each step to ``result``."""
    os.environ |= {"AREAL_SPMD_MODE": "1", "AREAL_LLM_SERVER_ADDRS": server}
    replace_gpu_functions()
    config = OmegaConf.to_object(to_structured_cfg(OmegaConf.create(settings), config_cls=PPOConfig))
    name_resolve.reconfigure(config.cluster.name_resolve)
    rows = [json.loads(line) for line in Path(config.train_dataset.path).read_text().splitlines()]
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
