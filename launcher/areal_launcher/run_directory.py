"""A run in a directory, here or on a shared file system, as an object: what it is doing, and requests to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from areal_api import names
from areal_api.rollout_columns import COLUMNS, file_name, step_of
from areal_launcher import run_files
from areal_launcher.run_status import RunStatus, status_of_directory

if TYPE_CHECKING:
    import pandas as pd

ACTIVE = ("pending", "running")
HOW_TO_DUMP = "runs with rollout.dump_to_file: true write them"


class RunDirectory:
    """The run in ``path``. Every method raises ``ValueError`` if there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def status(self) -> RunStatus:
        """What the run is doing now."""
        return status_of_directory(run_files.require_run(self.path))

    def follow(self, *, poll_s: float = 1.0) -> Iterator[RunStatus]:
        """The status now and whenever it has changed, until the run has ended."""
        return changes(self.status, poll_s=poll_s)

    def stop(self, *, now: bool = False) -> None:
        """Ask the launcher, on any node, to end the run: after a recovery checkpoint, or at once with ``now``."""
        if run_files.launcher_pid(run_files.require_run(self.path)) is None:
            raise ValueError(f"{self.path}: no grpo run uses it")
        run_files.request_stop(self.path, now=now)

    def scale(self, servers: int) -> None:
        """Ask the launcher for another number of servers."""
        if run_files.launcher_pid(run_files.require_run(self.path)) is None:
            raise ValueError(f"{self.path}: no grpo run uses it; set servers.replicas and start it")
        run_files.request_scale(self.path, servers)

    def history(self) -> pd.DataFrame:
        """The statistics, a row for each step; the columns are those of stats.jsonl."""
        return history_of(run_files.read_stats(run_files.require_run(self.path)).lines)

    def rollouts(self, steps: Sequence[int] | None = None) -> pd.DataFrame:
        """The samples of ``steps``, by default of the newest one, with the columns of docs/rollouts.md."""
        directory = names.rollouts_dir(run_files.require_run(self.path))
        return rollouts_of(directory, list(steps) if steps is not None else _newest(directory))


def changes(status: Callable[[], RunStatus], *, poll_s: float) -> Iterator[RunStatus]:
    """The status now and whenever it has changed, until the run has ended."""
    shown: RunStatus | None = None
    while True:
        current = status()
        if current != shown:
            shown = current
            yield current
        if current.state not in ACTIVE:
            return
        time.sleep(poll_s)


def history_of(lines: Sequence[run_files.Line]) -> pd.DataFrame:
    """The lines of stats.jsonl as a table, by step."""
    import pandas as pd

    return pd.DataFrame(list(lines)).set_index("step") if lines else pd.DataFrame()


def _newest(directory: Path) -> list[int]:
    try:
        steps = [step for path in directory.iterdir() if (step := step_of(path.name)) is not None]
    except OSError:
        steps = []
    return [max(steps)] if steps else []


def rollouts_of(directory: Path, steps: Sequence[int]) -> pd.DataFrame:
    """The samples of ``steps`` in the files of a directory. Raises ``ValueError`` for a step without any."""
    import pandas as pd

    from areal_launcher.parquet_files import rows_of

    columns = [column.name for column in COLUMNS]
    rows: list[dict[str, Any]] = []
    for step in steps:
        try:
            rows += rows_of(directory / file_name(step), COLUMNS, read=columns)
        except FileNotFoundError as error:
            raise ValueError(f"{directory} has no samples of step {step}; {HOW_TO_DUMP}") from error
    return pd.DataFrame(rows, columns=columns)
