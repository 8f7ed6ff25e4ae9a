"""``trl_grpo.py TASK RESULT.json``, run in TRL's environment: seconds and reward of each step.

TASK is a ``benchmarks.peer.PeerTask`` as JSON.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

ANSWER = re.compile(r"####\s*(-?\d+)")


class Clock(TrainerCallback):
    """Records the seconds of each step, including generation, and the rewards."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.rewards: list[float] = []
        self._started = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._started)

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "reward" in logs:
            self.rewards.append(float(logs["reward"]))


def reward(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """1 if the number after #### equals the reference."""
    texts = [completion[0]["content"] for completion in completions]
    return [float(_number(text) == _number(reference)) for text, reference in zip(texts, answer, strict=True)]


def _number(text: str) -> int | None:
    match = ANSWER.search(text)
    return int(match[1]) if match else None


def main(task: dict[str, Any], result: Path) -> None:
    """Train with 32 prompts × 8 samples of at most 20 tokens per step, fp32, one update per batch."""
    rows = [json.loads(line) for line in Path(task["data"]).read_text().splitlines()]
    dataset = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": row["question"]}], "answer": row["answer"]} for row in rows]
    )
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=256,
            num_generations=8,
            max_completion_length=20,
            max_steps=task["steps"],
            learning_rate=task["learning_rate"],
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=task["warmup_steps"],
            adam_beta2=0.99,
            max_grad_norm=1.0,
            epsilon=task["epsilon"],
            beta=0.0,
            temperature=1.0,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            model_init_kwargs={"dtype": torch.float32},
            seed=task["seed"],
        )
        clock = Clock()
        trainer = GRPOTrainer(
            model=task["model"],
            reward_funcs=reward,
            args=config,
            train_dataset=dataset,
            processing_class=AutoTokenizer.from_pretrained(task["model"], padding_side="left"),
            callbacks=[clock],
        )
        trainer.train()
    result.write_text(json.dumps({"seconds": clock.seconds, "rewards": clock.rewards}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
