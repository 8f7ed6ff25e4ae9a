"""Rollout statistics of a batch: staleness, rewards, rejections, waiting time and throughput."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from areal_api import stat_names
from areal_trainer.rollout.executor import Counters
from areal_trainer.trajectory import Trajectory


class BatchClock:
    """Measures from one batch to the next."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def statistics(
        self, trajectories: Sequence[Trajectory], counters: Counters, *, step: int, waited_s: float
    ) -> dict[str, float]:
        """Statistics of the batch that trains weight version ``step``; times are since the previous batch."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        heads = [trajectory.head_version for trajectory in trajectories]
        lags = [step - head for head in heads if head >= 0]
        tokens = sum(trajectory.completion_len for trajectory in trajectories)
        statistics = {
            "rollout/accepted": float(counters.accepted),
            "rollout/rejected": float(counters.rejected),
            "rollout/failed": float(counters.failed),
            "rollout/rejected_share": counters.rejected / max(1, counters.accepted + counters.rejected),
            "rollout/reserve": float(counters.reserve),
            "rollout/wait_s": waited_s,
            stat_names.ROLLOUT_WAIT: min(1.0, waited_s / seconds),
            "rollout/tokens_per_second": tokens / seconds,
        }
        if counters.seconds:
            durations = np.quantile(counters.seconds, (0.5, 0.95, 1.0))
            names = ("rollout/episode_s/p50", "rollout/episode_s/p95", "rollout/episode_s/max")
            statistics |= {name: float(value) for name, value in zip(names, durations, strict=True)}
        statistics |= _term_means(trajectories)
        if trajectories:
            statistics["rollout/reward"] = sum(trajectory.reward for trajectory in trajectories) / len(trajectories)
        if lags:
            statistics[stat_names.mean(stat_names.STALENESS)] = sum(lags) / len(lags)
            statistics[stat_names.maximum(stat_names.STALENESS)] = float(max(lags))
        return statistics


def _term_means(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Means of the terms of the reward, over the samples that have them."""
    values: dict[str, list[float]] = {}
    for trajectory in trajectories:
        for name, value in (trajectory.reward_terms or {}).items():
            values.setdefault(f"{stat_names.REWARD_TERMS}{name}", []).append(value)
    return {name: sum(of_name) / len(of_name) for name, of_name in values.items()}
