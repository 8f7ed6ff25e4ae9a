"""The runs of the benchmarks ``learning`` and ``peers``: a task, its experiment, and training on it."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from areal_api import health, names, stat_names
from areal_api.commands import TRAIN_MODULE, trainer_env
from areal_api.experiment import GRPOExperiment
from benchmarks.learning_results import Record
from benchmarks.runs import TINY
from benchmarks.scripted import REPOSITORY
from benchmarks.servers import sglang_server

COLLAPSE_STATUS = 2


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
        "tokenizer_path": str(task.model),
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


class Server:
    """A server of a task's model on the CPU, which stays up between runs. It starts when a run first needs it."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.task = task
        self._folder = folder
        self._address = ""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def address(self) -> str:
        """host:port."""
        if not self._address:
            content = experiment(self.task, "defaults", "sync", seed=1, steps=1, run=self._folder / "server" / "run")
            file = self._folder / f"server-{self.task.name}.yaml"
            file.write_text(yaml.safe_dump(content["spec"]["config"]))
            started = sglang_server(file, self.task.model, file.with_suffix(".log"))
            self._address = self._stack.enter_context(started)
        return self._address


def run_directory(task: Task, mode: str, work: Path) -> Path:
    """Where the files of a run in ``work`` are."""
    return work / task.name / mode


def train(
    task: Task, setting: str, mode: str, work: Path, *, seed: int, steps: int, server: Server | None = None
) -> Record:
    """Train in ``work``, with the trainer alone on ``server``, or with ``grpo run`` and a server that it starts.

    Raises ``RuntimeError`` if the run fails. A policy that collapses is a result.
    """
    run, file = run_directory(task, mode, work), work / "experiment.yaml"
    content = experiment(task, setting, mode, seed=seed, steps=steps, run=run)
    file.write_text(yaml.safe_dump(content))
    if server is not None:
        argv, env = [sys.executable, "-m", TRAIN_MODULE], _trainer_env(content, run, server.address)
    else:
        argv, env = [str(Path(sys.executable).with_name("grpo")), "run", str(file)], {}
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False, env=os.environ | env)
    if done.returncode not in (0, COLLAPSE_STATUS) or not names.summary_file(run).exists():
        raise RuntimeError(f"{' '.join(argv)} exited with status {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return _record(names.stats_file(run))


def _trainer_env(content: dict[str, Any], run: Path, address: str) -> dict[str, str]:
    file = run.with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content["spec"]["config"]))
    parsed = GRPOExperiment.model_validate(content)
    return trainer_env(parsed, run_dir=run, config_file=file, server_addrs=[address], api_key_file=None)


def _record(stats: Path) -> Record:
    lines = [json.loads(line) for line in stats.read_text().splitlines()]
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
