"""A taskset of verifiers: the word problems of examples/tiny."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import verifiers.v1 as vf

from examples.calculator.calculator import reward_of


class Problem(vf.TaskData):
    """A word problem and its solution."""

    solution: str


class WordProblem(vf.Task[Problem]):
    """The reward is 1 for the correct answer."""

    @vf.reward
    async def correct(self, task: Problem, trace: vf.Trace) -> float:
        """Whether the last answer is that of the solution."""
        return reward_of(trace.last_reply, task.solution)


class WordProblems(vf.Taskset[WordProblem]):
    """All problems of the training data."""

    def load(self) -> Iterator[WordProblem]:
        """The tasks, in the order of the file."""
        with Path("examples/tiny/data/train.jsonl").open() as lines:
            for line in lines:
                row = json.loads(line)
                yield WordProblem(Problem(prompt=row["question"], solution=row["answer"]), self.config.task)


__all__ = ["WordProblems"]
