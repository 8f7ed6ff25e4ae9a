"""Benchmarks of math problems for ``grpo eval --benchmark``: where each is, and what its columns are called."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from areal_api.config import GRPOConfig, WorkflowConfig
from areal_api.data_config import RewardConfig, ValidDatasetConfig
from areal_api.paths import expand_home


@dataclass(frozen=True)
class BenchmarkSet:
    """A data set of the Hugging Face hub with a problem and its final answer in each row."""

    path: str
    split: str
    question_column: str
    answer_column: str = "answer"
    config: str | None = None  # of the data set


BENCHMARKS: Final = {
    "aime24": BenchmarkSet("HuggingFaceH4/aime_2024", "train", "problem"),
    "aime25": BenchmarkSet("math-ai/aime25", "test", "problem"),
    "gsm8k": BenchmarkSet("openai/gsm8k", "test", "question", config="main"),
    "math500": BenchmarkSet("HuggingFaceH4/MATH-500", "test", "problem"),
}


@dataclass(frozen=True)
class ChosenBenchmark:
    """A benchmark, from the hub or from a file with the same columns."""

    name: str
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> ChosenBenchmark:
        """``NAME`` or ``NAME=FILE``. Raises ``ValueError`` for an unknown name or a missing file."""
        name, _, file = text.partition("=")
        if name not in BENCHMARKS:
            raise ValueError(f"--benchmark {text}: unknown name {name!r}; known are {', '.join(BENCHMARKS)}")
        if "=" in text and not os.path.isfile(expand_home(file)):
            raise ValueError(f"--benchmark {text}: {file} is not a file; give a jsonl, json, parquet or csv file")
        return cls(name, expand_home(file) if "=" in text else None)

    def applied(self, config: GRPOConfig) -> GRPOConfig:
        """The configuration with these problems alone, one answer to each prompt, and the built-in grader."""
        of = BENCHMARKS[self.name]
        columns = {"question_column": of.question_column, "answer_column": of.answer_column}
        if self.file is not None:
            problems = ValidDatasetConfig(path=self.file, **columns)
        else:
            problems = ValidDatasetConfig(path=of.path, name=of.config, split=of.split, **columns)
        if config.valid_dataset is not None:
            problems = problems.model_copy(update={"limit": config.valid_dataset.limit})
        grader = RewardConfig(processes=config.reward.processes, timeout=config.reward.timeout)
        evaluator = config.evaluator.model_copy(update={"sets": [], "solved_reward": 1.0})
        changes = {"valid_dataset": problems, "reward": grader, "workflow": WorkflowConfig(), "evaluator": evaluator}
        return config.model_copy(update=changes)
