"""How reliably and how fast training learns: final reward over seeds, collapses, time to a reward.

Every run trains a model of 0.8 M parameters for 25 steps of 32 × 8 samples with Adam at a constant rate of 5e-4 and
ε 0.2, without normalised advantages: settings under which stale samples matter. Each finished run is a file in
``--folder``, so an interrupted benchmark continues where it stopped.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from areal_api import health, names, stat_names
from benchmarks.learning_options import Options
from benchmarks.learning_results import Cell, Record, table
from benchmarks.peer import PeerError, PeerTask
from benchmarks.peer_trainers import PEER_TRAINERS
from benchmarks.runs import TINY
from benchmarks.scripted import REPOSITORY

COLLAPSE_STATUS = 2


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
        for mode in options.modes:
            # Synchronous samples need no correction.
            settings = options.settings[:1] if mode == "sync" else options.settings
            cells += [_cell(task, setting, mode, options) for setting in settings]
        cells += [_peer_cell(task, peer, options) for peer in options.peers]
    report = Report(cells, options.folder)
    report.write()
    return [report]


@dataclass(frozen=True)
class Task:
    """Model and problems."""

    name: str
    model: Path
    data: Path


def task_files(name: str, folder: Path) -> Task:
    """The files of a task; those of ``rows`` are made on first use."""
    if name == "tiny":
        return Task(name, TINY / "model", TINY / "data" / "train.jsonl")
    made = folder / name
    if not (made / "data" / "train.jsonl").exists():  # written last
        subprocess.run([sys.executable, "-m", "benchmarks.rows", str(made)], cwd=REPOSITORY, check=True)
    return Task(name, made / "model", made / "data" / "train.jsonl")


def experiment(task: Task, setting: str, mode: str, *, seed: int, steps: int, run: Path) -> dict[str, Any]:
    """The experiment of a run. ``defaults`` leaves out every key about stale samples."""
    content: dict[str, Any] = yaml.safe_load((TINY / "experiment.yaml").read_text())
    config = content["spec"]["config"]
    for key in ("valid_dataset", "evaluator", "eval_gconfig"):
        del config[key]
    config |= {
        "seed": seed,
        "total_train_steps": steps,
        "async_training": mode != "sync",
        "experiment_name": run.parent.name,
        "trial_name": run.name,
        "cluster": {"fileroot": str(run.parents[1])},
        "recover": {"mode": "disabled"},
        "train_dataset": {"path": str(task.data), "batch_size": 32, "instruction": ""},
    }
    config["rollout"]["max_head_offpolicyness"] = 0 if mode == "sync" else int(mode.removeprefix("eta"))
    actor = config["actor"]
    for key in ("adv_norm", "recompute_logprob", "use_decoupled_loss", "behav_imp_weight_cap"):
        del actor[key]
    actor |= {"path": str(task.model), "eps_clip": 0.2}
    actor["optimizer"] |= {"lr": 5.0e-4, "lr_scheduler_type": "constant", "warmup_steps_proportion": 0.0}
    if setting == "areal":
        actor |= {"use_decoupled_loss": True, "recompute_logprob": True, "behav_imp_weight_cap": 5.0}
        actor |= {"correction": {"kl_penalty": 0.0}}
    return content


def _cell(task: Task, setting: str, mode: str, options: Options) -> Cell:
    records = [
        _recorded(
            options.folder / "runs" / task.name / f"{setting}-{mode}" / f"seed{seed}.json",
            partial(_train, task, setting, mode, seed=seed, steps=options.steps),
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


def _recorded(file: Path, train: Callable[[Path], Record]) -> Record:
    """The result in ``file``, after ``train`` in a folder beside it if there is none."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        work = file.with_suffix("")
        shutil.rmtree(work, ignore_errors=True)  # of an interrupted run, whose times could not be compared
        work.mkdir()
        record = train(work)
        shutil.rmtree(work)
        print(f"{file.parent.name} {file.stem}: {record.final:.3f}, {record.step_s:.2f} s per step", flush=True)
        written = file.with_suffix(".partial")
        written.write_text(json.dumps(asdict(record)))
        written.replace(file)
    return Record(**json.loads(file.read_text()))


def _train(task: Task, setting: str, mode: str, work: Path, *, seed: int, steps: int) -> Record:
    """Train with ``grpo run`` in ``work``."""
    run, file = work / task.name / mode, work / "experiment.yaml"
    file.write_text(yaml.safe_dump(experiment(task, setting, mode, seed=seed, steps=steps, run=run)))
    argv = [str(Path(sys.executable).with_name("grpo")), "run", str(file)]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode not in (0, COLLAPSE_STATUS) or not names.summary_file(run).exists():
        raise RuntimeError(f"{' '.join(argv)} exited with status {done.returncode}:\n{done.stdout}\n{done.stderr}")
    lines = [json.loads(line) for line in names.stats_file(run).read_text().splitlines()]
    return Record(
        [line["seconds_per_step"] for line in lines],
        [line["task_reward/avg"] for line in lines],
        warned=sum(line[health.COUNT] > 0 for line in lines),
        staleness=statistics.fmean(line[stat_names.mean(stat_names.STALENESS)] for line in lines[2:] or lines),
        warnings={
            name: count
            for name in health.WARNINGS
            if (count := int(sum(line[f"{health.PREFIX}{name}"] for line in lines)))
        },
    )
