"""Detached runs: starts the driver in a new session, and follows it through the run directory."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from areal_api import names
from areal_api.experiment import GRPOExperiment
from areal_api.render import experiment_yaml
from areal_launcher import run_files
from areal_launcher.bounded_files import DamagedFileError, read_object, read_tail
from areal_launcher.core.journal import JournalReader, journal_size
from areal_launcher.display import Display, display_for, show_added_steps
from areal_launcher.errors import RunError
from areal_launcher.results_table import results_table

DRIVER = "areal_launcher.places.ray.driver"
POLL_S = 0.2
INTERRUPTED = 130
USAGE_ERROR = 2
MAX_OUTPUT_BYTES = 2**14
CONTINUES = "the run continues in {run}; the same command without --detach follows it, grpo stop {run} ends it"


def marker_file(run: Path) -> Path:
    """Identifies the driver that holds the run directory as a detached one."""
    return run / "ray-driver.json"


def output_file(run: Path) -> Path:
    """Output of the driver."""
    return names.logs_dir(run) / "ray-driver.log"


def write_marker(run: Path, offset: int) -> None:
    """Mark this process, which holds the run directory; ``offset``: where its part of the journal starts."""
    run_files.write_atomic(marker_file(run), json.dumps({"pid": os.getpid(), "offset": offset}))


def is_detached(run: Path) -> bool:
    """Whether a detached driver, on any node, holds the run directory."""
    holder = run_files.launcher_pid(run)
    return holder is not None and holder == marker(run).get("pid")


def marker(run: Path) -> dict[str, int]:
    """The marker of the last detached driver; empty if there was none or it is damaged."""
    try:
        found = read_object(marker_file(run)) or {}
    except DamagedFileError:
        return {}
    return {key: value for key, value in found.items() if isinstance(value, int) and value >= 0}


def require_same(experiment: GRPOExperiment, run: Path) -> None:
    """Raise ``ValueError`` if the run that holds the directory has another configuration than ``experiment``."""
    if run_files.experiment_file(run).read_text(encoding="utf-8") != experiment_yaml(experiment):
        raise ValueError(
            f"a detached run uses {run} with another configuration, which is in {run_files.experiment_file(run)}; "
            f"repeat its command to follow it, end it with grpo stop {run}, or choose another trial_name"
        )


def start_driver(
    experiment: GRPOExperiment, run: Path, *, address: str | None, port: int | None, console: Console
) -> int:
    """Start the driver, and return 0 once the run is placed or waits for room. Raises like ``grpo run`` if it fails."""
    output = output_file(run)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        file = run / f".experiment-{secrets.token_hex(8)}.yaml"
        file.write_text(experiment_yaml(experiment), encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cluster.fileroot: cannot create {run}: {error.strerror}") from error
    argv = [sys.executable, "-m", DRIVER, str(run), str(file)]
    argv += [] if address is None else ["--address", address]
    argv += [] if port is None else ["--port", str(port)]
    journal, printed = journal_size(run), output.stat().st_size if output.exists() else 0
    with output.open("ab") as log:
        driver = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    follower = Follower(run, offset=journal)
    try:
        with display_for(console) as display:
            while not (follower.poll(display) or follower.placed):
                if driver.poll() is not None and follower.outcome is None:
                    raise early_failure(output, printed, driver.returncode)
                time.sleep(POLL_S)
    except KeyboardInterrupt:
        return interrupted(run, console)
    finally:
        if driver.poll() is not None:
            file.unlink(missing_ok=True)
    if isinstance(follower.outcome, RunError):
        raise follower.outcome
    console.print(CONTINUES.format(run=run), markup=False, soft_wrap=True)
    return 0


def early_failure(output: Path, start: int, status: int) -> Exception:
    """Why the driver ended before it had claimed the run directory, from what it has printed since ``start``."""
    added = max(0, output.stat().st_size - start)
    text = read_tail(output, min(added, MAX_OUTPUT_BYTES)).decode(errors="replace").strip() if added else ""
    if status == USAGE_ERROR and text:
        return ValueError(text)
    return RunError(f"the driver ended with exit status {status}", log=output, lines=text.splitlines()[-20:])


def follow(run: Path, console: Console) -> int:
    """Follow the detached run to its end; its exit status. Raises ``RunError`` if it failed."""
    follower = Follower(run, offset=marker(run).get("offset", 0))
    try:
        with display_for(console) as display:
            while not follower.poll(display):
                time.sleep(POLL_S)
    except KeyboardInterrupt:
        return interrupted(run, console)
    if isinstance(follower.outcome, RunError):
        raise follower.outcome
    console.print(results_table(run))
    assert follower.outcome is not None
    return follower.outcome


def interrupted(run: Path, console: Console) -> int:
    """Say that the run continues; the exit status of its follower."""
    console.print(CONTINUES.format(run=run), markup=False, soft_wrap=True)
    return INTERRUPTED


class Follower:
    """Reads what a driver writes to the run directory."""

    def __init__(self, run: Path, *, offset: int) -> None:
        """``offset``: where the driver's part of the journal starts."""
        self._run = run
        self._journal = JournalReader(run, offset=offset)
        self._stats = run_files.Stats(names.stats_file(run))
        self._claimed = False
        self.outcome: int | RunError | None = None

    @property
    def placed(self) -> bool:
        """Whether the run is placed or waits for room."""
        return bool(self._journal.phase)

    def poll(self, display: Display) -> bool:
        """Show what was added; whether the run has ended, as ``outcome`` says."""
        running = is_detached(self._run)
        self._claimed = self._claimed or running
        self._journal.replay(display)
        show_added_steps(display, self._stats)
        self.outcome = self._journal.ended
        if self.outcome is None and self._claimed and not running:
            self.outcome = RunError(
                "the driver of the run was killed; run the same command to continue from the last checkpoint",
                log=output_file(self._run),
            )
        return self.outcome is not None
