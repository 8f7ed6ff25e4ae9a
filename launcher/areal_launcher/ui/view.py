"""What the page shows of a run: its state, its newest figures, its events and its servers."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from areal_api import health, names, stat_names
from areal_launcher import run_files
from areal_launcher.bounded_files import DamagedFileError, read_bytes
from areal_launcher.catalog import Catalog, RunEntry
from areal_launcher.core.journal import read_entries
from areal_launcher.run_state import clipped, progress_of, state_of
from areal_launcher.ui.charts import charts_of
from areal_launcher.ui.table import ColumnTable, StatsTable

MAX_TABLES = 32  # runs whose statistics are kept in memory
MAX_EVENTS = 500
MAX_CONFIG_BYTES = 256 * 1024


class Tables:
    """Tables of statistics, of the runs that were shown last."""

    def __init__(self) -> None:
        self._tables: OrderedDict[Path, StatsTable] = OrderedDict()

    def of(self, run: Path) -> StatsTable:
        """The table of a run, as it was last read."""
        table = self._tables.pop(run, None) or StatsTable(run)
        self._tables[run] = table
        while len(self._tables) > MAX_TABLES:
            self._tables.popitem(last=False)
        return table


def rows(catalog: Catalog) -> list[dict[str, Any]]:
    """A line for each run, the latest first."""
    found = []
    for entry in catalog.scan():
        state, progress = state_of(entry.path), progress_of(entry.path)
        line = {"id": entry.identifier, "name": clipped(entry.name), "state": state.name, "reason": state.reason}
        found.append(line | asdict(progress))
    return sorted(found, key=lambda row: row["changed"] or 0.0, reverse=True)


def overview(entry: RunEntry, table: StatsTable) -> dict[str, Any]:
    """A run, without its series."""
    state = state_of(entry.path)
    problems = [table.problem] if table.problem else []
    if table.damaged:
        problems.append(f"{table.damaged} damaged lines of {names.stats_file(entry.path).name} are ignored")
    return {
        "id": entry.identifier,
        "name": clipped(entry.name),
        "path": str(entry.path),
        "state": state.name,
        "reason": state.reason,
        "problems": [clipped(text) for text in problems],
        "step": table.last_step,
        "total": table.last(stat_names.TOTAL_STEPS),
        "figures": figures(table),
        "charts": [asdict(chart) for chart in charts_of(table.statistics)],
        "statistics": table.statistics,
        "servers": servers(entry.path, table),
        "events": events(entry.path, table),
        "files": True,
        "more": False,
        "changes": table.changes,
    }


def servers(run: Path, table: ColumnTable) -> list[dict[str, str]]:
    """Each server as the launcher last reported it, with the weights that it held at the last step."""
    shown = []
    for index, server in enumerate(run_files.read_servers(run)[:MAX_EVENTS]):
        version = table.last(stat_names.server_version(index))
        held = "–" if version is None else "unknown" if version < 0 else names.weight_version(int(version))
        shown.append(server | {"weights": held})
    return shown


def figures(table: ColumnTable) -> list[dict[str, Any]]:
    """The newest values that tell most, with their labels."""
    shown = {
        "reward": stat_names.TASK_REWARD,
        "evaluation": stat_names.EVAL_REWARD,
        "tokens per second": stat_names.TOKENS_PER_SECOND,
        "staleness": stat_names.STALENESS,
        "entropy": stat_names.ENTROPY,
    }
    found = [(label, table.last(name)) for label, name in shown.items()]
    return [{"label": label, "value": value} for label, value in found if value is not None]


def events(run: Path, table: StatsTable) -> list[dict[str, Any]]:
    """What happened to a run, by step: warnings about the policy, rollbacks, lost servers, and what the launcher
    reported."""
    found = [
        {"step": step, "kind": "warning", "text": text}
        for name, text in health.WARNINGS.items()
        for step, value in table.changed_rows(health.PREFIX + name)
        if value == 1.0
    ]
    for step, count in table.changed_rows(health.ROLLBACKS):
        if count > 0:
            found.append({"step": step, "kind": "rollback", "text": f"{health.COLLAPSE_MESSAGE} and was rolled back"})
    for index in range(stat_names.MAX_SERVERS):
        if (name := stat_names.server_losses(index)) not in table:
            break
        for step, count in table.changed_rows(name):
            if count > 0:
                text = f"server {index} no longer held the current weights: lost, restarted or not updated"
                found.append({"step": step, "kind": "server", "text": text})
    found += [
        {"step": step, "kind": "launcher", "text": clipped(text)} for step, text in launcher_messages(run)[-MAX_EVENTS:]
    ]
    return sorted(found, key=lambda event: int(str(event["step"])))[-MAX_EVENTS:]


def launcher_messages(run: Path) -> list[tuple[int, str]]:
    """Messages of the launcher, with the step that was last finished before each."""
    messages = []
    for entry in read_entries(run):
        step, text = entry.get("step"), entry.get("message", entry.get("error"))
        if isinstance(text, str):
            messages.append((step if isinstance(step, int) and 0 <= step <= run_files.MAX_STEP else 0, text))
    return messages


def configuration(run: Path) -> str:
    """The text of the experiment, or of the configuration if there is none; empty if neither can be read."""
    for path in (run_files.experiment_file(run), names.config_file(run)):
        try:
            return read_bytes(path, MAX_CONFIG_BYTES).decode("utf-8", errors="replace")
        except (DamagedFileError, OSError):
            continue
    return ""
