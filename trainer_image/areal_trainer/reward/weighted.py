"""The reward of a configuration: the value of ``reward.path``, or a weighted sum with further terms."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from areal_api import names, stat_names
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
        self._sums: dict[str, float] = {}
        self._count = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        alone = len(self._terms) == 1 and config.weight == 1.0
        self.score: Score = self._main.score if alone else self._score  # of a sample that is trained on
        self.held_out_score: Score = self._main.score if alone else self._weighted  # not counted in the statistics

    @classmethod
    def of(cls, config: RewardConfig, *, run: Path | None = None) -> Self:
        """The reward of ``config``."""
        return cls(config, run=run)

    @property
    def function(self) -> RewardFunction:
        """The function of ``reward.path``."""
        return self._main.function

    @property
    def has_terms(self) -> bool:
        """Whether there are terms besides ``reward.path``."""
        return len(self._terms) > 1

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

    def take_statistics(self) -> dict[str, float]:
        """Means of all terms over the samples scored since the last call, and what the judges did in the whole run."""
        if not self.has_terms:
            return {}
        sums, count = self._sums, self._count
        self._sums, self._count = {}, 0
        found = {f"{stat_names.REWARD_TERMS}{name}": total / count for name, total in sums.items()}
        for name, judge in self._judges.items():
            judge.save()
            usage = judge.usage
            values = {"requests": usage.requests, "cached": usage.cached, "failed": usage.failed, "cost": usage.cost}
            found |= {f"judge/{name}/{key}": float(value) for key, value in values.items()}
        return found

    async def _score(self, *sample: Any, **columns: Any) -> float:
        values = await self._values(*sample, **columns)
        for term, value in zip(self._terms, values, strict=True):
            self._sums[term.name] = self._sums.get(term.name, 0.0) + value
        self._count += 1
        return self._total(values)

    async def _weighted(self, *sample: Any, **columns: Any) -> float:
        return self._total(await self._values(*sample, **columns))

    async def _values(self, *sample: Any, **columns: Any) -> list[float]:
        self._loop = asyncio.get_running_loop()
        tasks = [asyncio.ensure_future(term.score(*sample, **columns)) for term in self._terms]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # one that fails cancels the others
                task.cancel()

    def _total(self, values: list[float]) -> float:
        return sum(term.weight * value for term, value in zip(self._terms, values, strict=True))
