"""``trl_grpo.py MODEL DATA SETTINGS RESULT.json``, run in TRL's environment: seconds and reward of each step.

SETTINGS are arguments of TRL's ``GRPOConfig`` as JSON.
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


def main(model: str, data: Path, settings: dict[str, Any], result: Path) -> None:
    """Train ``model`` in float32 as ``settings`` say, and write the seconds and rewards of each step to ``result``."""
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    dataset = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": row["question"]}], "answer": row["answer"]} for row in rows]
    )
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(output_dir=folder, model_init_kwargs={"dtype": torch.float32}, **settings)
        clock = Clock()
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=config,
            train_dataset=dataset,
            processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
            callbacks=[clock],
        )
        trainer.train()
    result.write_text(json.dumps({"seconds": clock.seconds, "rewards": clock.rewards}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), Path(sys.argv[4]))
