"""What the commands of ``grpo`` do. ``ValueError`` for what a user wrote, ``RunError`` for a run that failed."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from rich.console import Console

from areal_api import names
from areal_api.experiment import GRPOExperiment
from areal_api.load import load_experiment
from areal_api.render import experiment_yaml
from areal_launcher import run_files
from areal_launcher.display import closing_table, display_for, figures, in_cluster, last_checkpoint
from areal_launcher.errors import RunError
from areal_launcher.local.prepare import evaluation_of, experiment_file, prepared_run
from areal_launcher.local.run import LocalRun
from areal_launcher.plot import plot_run

YAML_SUFFIXES = (".yaml", ".yml")
FOLLOW_S = 0.2
PLAIN_WIDTH = 160


@dataclass(frozen=True)
class Request:
    """An experiment as it is named on the command line."""

    path: Path | None
    script: str | None
    overrides: list[str]

    @classmethod
    def of(cls, items: Sequence[str], config: str | None) -> Self:
        """Sort the arguments: files by their suffix, overrides by their ``=``."""
        files = [config] if config is not None else []
        scripts: list[str] = []
        overrides: list[str] = []
        for item in items:
            if "=" in item:
                overrides.append(item)
            elif item.endswith(".py"):
                scripts.append(item)
            elif item.endswith(YAML_SUFFIXES):
                files.append(item)
            else:
                raise ValueError(f"{item}: neither a script (.py), an experiment (.yaml) nor an override (key=value)")
        if len(files) > 1:
            raise ValueError(f"two experiments were given, {' and '.join(files)}; give one")
        if len(scripts) > 1:
            raise ValueError(f"two scripts were given, {' and '.join(scripts)}; give one")
        script = scripts[0] if scripts else None
        if script is not None and not Path(script).is_file():
            raise ValueError(f"{script}: no such file; give the path of a training script")
        return cls(Path(files[0]) if files else None, script, overrides)

    def load(self) -> GRPOExperiment:
        """The experiment, validated."""
        if self.path is None:
            raise ValueError("no experiment: give an experiment.yaml, or AReaL's own file by --config")
        return load_experiment(self.path, self.overrides, self.script)


def console_for(*, stderr: bool = False) -> Console:
    """Where a command writes; wide enough for paths where there is no terminal to ask."""
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=PLAIN_WIDTH)


def run(request: Request, port: int | None) -> int:
    """Train on this machine."""
    experiment = request.load()
    console = console_for()
    directory = names.run_dir(experiment.spec.config)
    with prepared_run(experiment, run=directory, first_port=port) as plan:
        names.summary_file(directory).unlink(missing_ok=True)  # of the start before this one
        console.print(f"run directory {directory}", markup=False, soft_wrap=True)
        try:
            with display_for(console) as display:
                status = LocalRun(plan, display).run()
        finally:
            draw(directory, console)
    console.print(closing_table(directory))
    return status


def draw(directory: Path, console: Console) -> None:
    """Draw reward.png where there is something to draw. A disk without room must not hide how the run ended."""
    if not run_files.read_stats(directory).lines:
        return
    try:
        plot_run(directory)
    except OSError as error:
        console.print(f"no picture was drawn: {error}", markup=False, soft_wrap=True)


def evaluate(checkpoint: str, request: Request, port: int | None) -> int:
    """Print the mean reward of a checkpoint on valid_dataset as a line of JSON."""
    model, directory = checkpoint_of(checkpoint), run_of(Path(checkpoint))
    if request.path is None:
        if directory is None:
            raise ValueError(
                f"{checkpoint} belongs to no run here: give a run's directory or a checkpoint in one, or beside any "
                "other model the experiment to evaluate it on, an experiment.yaml or AReaL's own file by --config"
            )
        request = Request(experiment_file(directory), request.script, request.overrides)
    experiment = evaluation_of(request.load(), model)
    console = console_for(stderr=True)
    at = (directory or names.run_dir(experiment.spec.config)) / "eval" / Path(model).name
    with prepared_run(experiment, run=at, first_port=port) as plan:
        log = plan.trainer.log
        log.unlink(missing_ok=True)
        with display_for(console) as display:
            status = LocalRun(replace(plan, first_work="evaluating"), display).run()
    printed = log.read_text().splitlines()
    results = [line for line in printed if line.startswith("{")]
    if status == 0 and not results:
        raise RunError("the evaluation printed no result", log=log, lines=printed[-20:])
    if results:
        print(results[-1])
    return status


def checkpoint_of(text: str) -> str:
    """The checkpoint that is meant: of a run directory, its newest."""
    path = Path(text)
    if not is_run(path):
        return text
    newest = last_checkpoint(path)
    if newest is None:
        elsewhere = in_cluster(path)
        if elsewhere is not None:
            raise ValueError(
                f"{path} has no checkpoint here, they are {elsewhere}; the command that brought these results brings "
                "the newest with --checkpoint"
            )
        raise ValueError(f"{path} has no checkpoint yet; name one")
    return newest


def is_run(path: Path) -> bool:
    """Whether a directory is the run directory of a local run."""
    return experiment_file(path).is_file()


def run_of(path: Path) -> Path | None:
    """The run directory that ``path`` is or lies in."""
    return next((place for place in (path, *path.absolute().parents) if is_run(place)), None)


def convert(request: Request, output: Path | None) -> int:
    """Write AReaL's own file as an experiment.yaml."""
    text = experiment_yaml(request.load())
    if output is None:
        sys.stdout.write(text)
    else:
        output.write_text(text)
    return 0


def plot(directory: Path) -> int:
    """Draw reward.png."""
    print(plot_run(existing_run(directory)))
    return 0


def existing_run(directory: Path) -> Path:
    """The directory, if a run has been there."""
    if not names.config_file(directory).is_file():
        raise ValueError(f"{directory}: no run here (no {names.config_file(directory).name}); give a run directory")
    return directory


def status(directory: Path) -> int:
    """Print how a run stands."""
    existing_run(directory)
    console = console_for()
    pid, stats = run_files.launcher_pid(directory), run_files.read_stats(directory)
    if pid is None:
        if run_files.read_summary(directory) is None:
            console.print("not running, and not finished: the command that started it goes on", markup=False)
        console.print(closing_table(directory))
        return 0
    total = stats.last(run_files.TOTAL_STEPS)
    shown = "  ".join(f"{label} {text}" for label, text in figures(stats, int(total) if total else None))
    console.print(f"running (process {pid})  {shown}", markup=False, soft_wrap=True)
    for server in run_files.read_state(directory)["servers"]:
        line = f"{server['name']}  {server['address']}  {server['state']}  restarts {server['restarts']}"
        console.print(line, markup=False, soft_wrap=True)
    return 0


def logs(directory: Path, *, component: str | None, process: str | None, lines: int, follow: bool) -> int:
    """Print the last lines of logs, and what is added to them."""
    place = names.logs_dir(directory)
    pattern = {None: "*.log", "trainer": "trainer.log", "servers": "server-*.log"}[component]
    found = {path.stem: path for path in sorted(place.glob(pattern))}
    if not found:
        raise ValueError(f"{directory}: no logs here; give a run directory")
    if process is not None and process not in found:
        raise ValueError(f"{process}: no such process; there are {', '.join(found)}")
    chosen = [process] if process is not None else list(found)
    offsets: dict[str, int] = {}
    try:
        while True:
            for name in chosen:
                print_added(name, found[name], offsets, lines=lines, prefix=len(chosen) > 1)
            if not follow:
                return 0
            time.sleep(FOLLOW_S)
    except KeyboardInterrupt:
        return 0


def print_added(name: str, path: Path, offsets: dict[str, int], *, lines: int, prefix: bool) -> None:
    """Print whole lines that are new in a log; at the first call, the last ``lines``."""
    with path.open("rb") as file:
        file.seek(offsets.get(name, 0))
        data = file.read()
    data = data[: data.rfind(b"\n") + 1]
    added = data.decode(errors="replace").splitlines()
    for line in added if name in offsets else added[-lines:]:
        print(f"{name} | {line}" if prefix else line, flush=True)
    offsets[name] = offsets.get(name, 0) + len(data)


def crd() -> int:
    """Print the custom resource definition."""
    from areal_api.generate.crd import crd_yaml

    sys.stdout.write(crd_yaml())
    return 0


def key_help() -> str:
    """Every key of an experiment: default, unit and meaning."""
    from areal_api.generate.docs import describe_keys

    return describe_keys()
