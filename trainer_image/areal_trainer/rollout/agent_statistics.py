"""Statistics of agents' sessions per training step, from the gateway's counts since its start."""

from __future__ import annotations

from collections import Counter

from areal_api import stat_names


class AgentStatistics:
    """Turns counts since the start of a process into counts since the last call of ``take``."""

    def __init__(self) -> None:
        self._before: Counter[str] = Counter()  # of processes that ended
        self._current: Counter[str] = Counter()
        self._taken: Counter[str] = Counter()

    def update(self, counts: dict[str, int]) -> None:
        """The counts of the process that runs."""
        self._current = Counter(counts)

    def restart(self) -> None:
        """Another process starts, whose counts begin at 0."""
        self._before.update(self._current)
        self._current = Counter()

    def take(self) -> dict[str, float]:
        """Sessions by how they ended, requests that failed, and calls, since the last call."""
        total = self._before + self._current
        new = {name: count - self._taken[name] for name, count in total.items()}
        self._taken = total
        statistics = {f"{stat_names.AGENTS}{name}": float(new.get(name, 0)) for name in stat_names.AGENT_COUNTS}
        if new.get("ended"):
            statistics[stat_names.CALLS_PER_SESSION] = new.get("ended_calls", 0) / new["ended"]
        return statistics
