"""How reliably and how fast training learns: final reward over seeds, collapses, time to a reward.

Every run trains a model of 0.8 M parameters for 25 steps of 32 × 8 samples with Adam at a constant rate of 5e-4 and
ε 0.2, without normalised advantages: settings under which stale samples matter. Each finished run is a file in
``--folder``, so an interrupted benchmark continues where it stopped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from benchmarks.learning_options import Options
from benchmarks.learning_results import Cell, Record, table
from benchmarks.learning_runs import Server, Task, task_files, train
from benchmarks.peer import PeerError, PeerTask
from benchmarks.peer_trainers import PEER_TRAINERS


class Report:
    """The table, and where all figures are."""

    def __init__(self, cells: Sequence[Cell], folder: Path) -> None:
        self._cells = cells
        self._folder = folder

    def report(self) -> str:
        """Text for the terminal."""
        return f"{table(self._cells)}\nevery step of every run: {self._folder / 'results.json'}"

    def write(self) -> None:
        """Write results.json and results.md."""
        figures = [cell.figures() for cell in self._cells]
        (self._folder / "results.json").write_text(json.dumps(figures, indent=1) + "\n")
        (self._folder / "results.md").write_text(table(self._cells) + "\n")


def run(*, small: bool, rounds: int, options: Options | None = None) -> list[Report]:
    """Run every combination that has no result yet; returns the figures of all. ``rounds`` is not used."""
    options = options or Options()
    if small:
        options = Options(1, ("tiny",), ("eta2",), ("defaults",), (), options.folder / "small", steps=3)
    options.folder.mkdir(parents=True, exist_ok=True)
    cells = []
    for name in options.tasks:
        task = task_files(name, options.folder)
        with Server(task, options.folder) as server:
            for mode in options.modes:
                # Synchronous samples need no correction.
                settings = options.settings[:1] if mode == "sync" else options.settings
                cells += [_cell(server, setting, mode, options) for setting in settings]
        cells += [_peer_cell(task, peer, options) for peer in options.peers]
    report = Report(cells, options.folder)
    report.write()
    return [report]


def _cell(server: Server, setting: str, mode: str, options: Options) -> Cell:
    task = server.task
    records = [
        _recorded(
            options.folder / "runs" / task.name / f"{setting}-{mode}" / f"seed{seed}.json",
            partial(train, task, setting, mode, seed=seed, steps=options.steps, server=server),
        )
        for seed in range(1, options.seeds + 1)
    ]
    return Cell(task.name, setting, mode, records)


def _peer_cell(task: Task, peer: str, options: Options) -> Cell:
    """A peer's runs with its own code; its reason if it cannot run here."""
    records = []
    try:
        for seed in range(1, options.seeds + 1):
            work = PeerTask(task.model, task.data, steps=options.steps, seed=seed)
            file = options.folder / "runs" / task.name / peer / f"seed{seed}.json"
            records.append(_recorded(file, partial(PEER_TRAINERS[peer], work)))
    except PeerError as error:
        return Cell(task.name, peer, "", [], reason=str(error))
    return Cell(task.name, peer, "", records)


def _recorded(file: Path, run: Callable[[Path], Record]) -> Record:
    """The result in ``file``, after ``run`` in a folder beside it if there is none."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        work = file.with_suffix("")
        shutil.rmtree(work, ignore_errors=True)  # of an interrupted run, whose times could not be compared
        work.mkdir()
        record = run(work)
        shutil.rmtree(work)
        print(f"{file.parent.name} {file.stem}: {record.final:.3f}, {record.step_s:.2f} s per step", flush=True)
        written = file.with_suffix(".partial")
        written.write_text(json.dumps(asdict(record)))
        written.replace(file)
    return Record(**json.loads(file.read_text()))
