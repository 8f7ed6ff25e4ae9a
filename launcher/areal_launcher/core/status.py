"""`grpo status` of a run directory."""

from __future__ import annotations

import os
from pathlib import Path

from areal_api import names, stat_names
from areal_launcher import run_files
from areal_launcher.console import console_for
from areal_launcher.display import step_metrics
from areal_launcher.results_table import results_table
from areal_launcher.run_status import status_of_directory
from areal_launcher.terminal_text import printable_line


def status(directory: Path, *, as_json: bool = False) -> int:
    """Print the state of a run, as text or as JSON."""
    run_files.require_run(directory)
    if as_json:
        print(status_of_directory(directory).as_json())
        return 0
    console = console_for()
    pid = run_files.launcher_pid(directory)
    if pid is None:
        if not os.path.exists(names.summary_file(directory)):
            console.print("stopped before it finished: run the same command again to continue it", markup=False)
        console.print(results_table(directory))
        return 0
    stats = run_files.read_stats(directory)
    total = stats.last(stat_names.TOTAL_STEPS)
    shown = "  ".join(f"{label} {text}" for label, text in step_metrics(stats, int(total) if total else None))
    console.print(f"running (process {pid or 'unknown'})  {shown}", markup=False, soft_wrap=True)
    for server in run_files.read_servers(directory):
        line = f"{server['name']}  {server['address']}  {server['state']}  restarts {server['restarts']}"
        console.print(printable_line(line), markup=False, soft_wrap=True)
    return 0
