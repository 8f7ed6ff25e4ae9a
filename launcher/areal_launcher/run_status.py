"""The state of a run as JSON, with the same keys wherever the run is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic.alias_generators import to_camel

from areal_api import names, stat_names
from areal_launcher import run_files
from areal_launcher.bounded_files import DamagedFileError
from areal_launcher.run_state import State, state_of

RunState = Literal[
    "pending", "running", "stopped", "interrupted", "succeeded", "collapsed", "failed", "finished", "damaged"
]
STATES: tuple[RunState, ...] = get_args(RunState)


@dataclass(frozen=True)
class ServerStatus:
    """One server. ``state`` is starting, ready, backoff (waits for its restart) or lost."""

    name: str
    address: str | None
    state: str
    restarts: int


@dataclass(frozen=True)
class RunStatus:
    """A run. What is unknown is null. ``reward`` and ``staleness`` are means of the last step."""

    run: str  # the run directory, or the name of the experiment
    state: RunState
    message: str  # what the run waits for, or why it ended
    step: int | None
    total_steps: int | None
    reward: float | None
    eval_reward: float | None
    staleness: float | None
    tokens_per_second: float | None
    servers: list[ServerStatus]

    def as_json(self) -> str:
        """One line of JSON, with camelCase keys as in the status of an experiment in Kubernetes."""
        return json.dumps({to_camel(key): value for key, value in asdict(self).items()})


def status_of_directory(directory: Path, *, state: State | None = None) -> RunStatus:
    """The status of a run directory. ``state`` replaces the one that its files show."""
    found = state or state_of(directory)
    stats = read_stats(directory)
    line = stats.lines[-1] if stats.lines else {}
    evaluations = run_files.evaluations(stats.lines)
    total = stats.last(stat_names.TOTAL_STEPS)
    return RunStatus(
        run=str(directory),
        state=next((name for name in STATES if name == found.name), "finished"),
        message=found.reason,
        step=line.get("step"),
        total_steps=int(total) if total else None,
        reward=run_files.value(line, stat_names.TASK_REWARD),
        eval_reward=evaluations[-1][1] if evaluations else None,
        staleness=run_files.value(line, stat_names.STALENESS),
        tokens_per_second=stats.last(stat_names.TOKENS_PER_SECOND),
        servers=servers_of(run_files.read_servers(directory)) if found.name == "running" else [],
    )


def read_stats(directory: Path) -> run_files.Stats:
    """The statistics; empty if they cannot be read."""
    try:
        return run_files.read_stats(directory)
    except (DamagedFileError, OSError):
        return run_files.Stats(names.stats_file(directory))


def servers_of(servers: Sequence[dict[str, str]]) -> list[ServerStatus]:
    """The servers as the launcher wrote them."""
    return [
        ServerStatus(
            name=server["name"],
            address=None if server["address"] in ("unknown", "?") else server["address"],
            state=server["state"],
            restarts=int(server["restarts"]) if server["restarts"].isdecimal() else 0,
        )
        for server in servers
    ]
