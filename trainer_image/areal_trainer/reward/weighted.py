"""The reward of a configuration: the value of ``reward.path``, or a weighted sum with further terms."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from areal_api import names
from areal_api.data_config import TASK, RewardConfig
from areal_trainer.reward.function import RewardFunction
from areal_trainer.reward.judge import Judge
from areal_trainer.reward.pool import RewardPool

CLOSE_S = 10.0
Score = Callable[..., Awaitable[float]]


@dataclass(frozen=True)
class Term:
    """A term of the reward."""

    name: str
    weight: float
    score: Score


class WeightedReward(float):
    """A reward with the values of its terms, without their weights, by name."""

    terms: dict[str, float]

    @classmethod
    def of(cls, total: float, terms: dict[str, float]) -> Self:
        """The sum of the weighted terms."""
        made = cls(total)
        made.terms = terms
        return made


class Reward:
    """Scores samples. All calls must come from one event loop."""

    def __init__(self, config: RewardConfig, *, run: Path | None = None) -> None:
        """``run``: the directory in which judges keep what they cost. Raises ``ValueError`` for unusable functions."""
        self._main = RewardPool.of(config)
        self._pools = [self._main]
        self._judges: dict[str, Judge] = {}
        self._terms = [Term(TASK, config.weight, self._main.score)]
        for term in config.terms:
            if term.judge is not None:
                state = None if run is None else names.judge_file(run, term.name)
                judge = self._judges[term.name] = Judge(term.judge, name=term.name, state=state)
                self._terms.append(Term(term.name, term.weight, judge.score))
            else:
                assert term.path is not None
                pool = RewardPool(term.path, processes=config.processes, timeout_s=config.timeout)
                self._pools.append(pool)
                self._terms.append(Term(term.name, term.weight, pool.score))
        self._loop: asyncio.AbstractEventLoop | None = None
        alone = len(self._terms) == 1 and config.weight == 1.0
        self.score: Score = self._main.score if alone else self._score

    @classmethod
    def of(cls, config: RewardConfig, *, run: Path | None = None) -> Self:
        """The reward of ``config``."""
        return cls(config, run=run)

    @property
    def function(self) -> RewardFunction:
        """The function of ``reward.path``."""
        return self._main.function

    def start(self) -> None:
        """Start the processes of reward functions."""
        for pool in self._pools:
            pool.start()

    def close(self) -> None:
        """End all processes and connections. Thread-safe."""
        for pool in self._pools:
            pool.close()
        for judge in self._judges.values():
            if self._loop is not None and self._loop.is_running():
                asyncio.run_coroutine_threadsafe(judge.close(), self._loop).result(CLOSE_S)
            else:
                judge.save()

    def statistics(self) -> dict[str, float]:
        """What the judges did since the start, and what they have cost in the whole run."""
        found: dict[str, float] = {}
        for name, judge in self._judges.items():
            judge.save()
            found |= {f"judge/{name}/{key}": float(value) for key, value in asdict(judge.usage).items()}
        return found

    async def _score(self, *sample: Any, **columns: Any) -> WeightedReward:
        self._loop = asyncio.get_running_loop()
        tasks = [asyncio.ensure_future(term.score(*sample, **columns)) for term in self._terms]
        try:
            values = await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # one that fails cancels the others
                task.cancel()
        total = sum(term.weight * value for term, value in zip(self._terms, values, strict=True))
        return WeightedReward.of(total, {term.name: value for term, value in zip(self._terms, values, strict=True)})
