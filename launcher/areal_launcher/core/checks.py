"""Checks before anything starts, so that the first error is a clear one. All raise ``ValueError``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from areal_api import names
from areal_api.code import CodeSpec
from areal_api.experiment import ExperimentSpec
from areal_api.paths import is_local_path
from areal_launcher.bounded_files import read_object
from areal_launcher.core.server_checks import check_servers

DATA_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
FUNCTION = re.compile(r"^[\w.]+:[\w.]+$")
# The keys of config.json that determine the shapes of a model's tensors.
SHAPE_KEYS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
)


def check_model(key: str, path: str) -> None:
    """A local model directory must contain config.json. Hub names are not checked."""
    if not is_local_path(path):
        return
    directory = Path(path)
    if not directory.exists():
        raise ValueError(f"{key}: no model at {directory.absolute()}; set {key} to a directory or to a name on the hub")
    if not (directory / "config.json").is_file():
        raise ValueError(f"{key}: {directory.absolute()} has no config.json, so it is not a Hugging Face model")


def check_servers_model(servers: str, actor: str) -> None:
    """Servers must start from a model of the actor's shape: weights of another shape kill them. Local models only."""
    files = [Path(path) / "config.json" for path in (servers, actor)]
    if not all(file.is_file() for file in files):
        return
    servers_config, actor_config = (model_config(file.parent) for file in files)
    for key in SHAPE_KEYS:
        if servers_config.get(key) != actor_config.get(key):
            raise ValueError(
                f"sglang.model_path: {servers} has {key} {servers_config.get(key)!r}, actor.path "
                f"{actor_config.get(key)!r}, so the servers cannot load the trained weights; "
                "omit sglang.model_path to use actor.path"
            )


def check_dataset(key: str, path: str) -> None:
    """A local dataset must exist. Hub names and functions are checked by the trainer."""
    if FUNCTION.match(path):
        return
    if (is_local_path(path) or path.endswith(DATA_SUFFIXES)) and not Path(path).exists():
        raise ValueError(
            f"{key}: no dataset at {Path(path).absolute()}; set {key} to a file, a directory or a hub name"
        )


def model_config(directory: Path) -> dict[str, Any]:
    """The config.json of a local model."""
    return read_object(directory / "config.json") or {}


def check_run_directory(run: Path) -> None:
    """The run directory can be created and written to."""
    try:
        str(run.absolute()).encode("utf-8")
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cluster.fileroot: cannot create {run.absolute()}: {error.strerror}") from error
    except ValueError as error:  # a path that is not UTF-8, or has a zero byte
        raise ValueError(f"cluster.fileroot: {str(run)!r} is not a usable path: {error}; choose another") from error
    if not os.access(run, os.W_OK | os.X_OK):
        raise ValueError(
            f"cluster.fileroot: {run.absolute()} is not writable by this user; check its owner, mode and the umask"
        )


def check_experiment(spec: ExperimentSpec, *, run: Path, cores: int) -> None:
    """Run all checks that hold in every place. ``cores``: that a server on cpu may use."""
    config = spec.config
    check_programs(spec)
    check_downloads(spec)
    check_code(spec.code)
    check_script(spec.trainer.script, spec.code)
    check_model("actor.path", config.actor.path)
    if config.tokenizer_path:
        check_tokenizer(config.tokenizer_path)
    if config.sglang.model_path:
        check_model("sglang.model_path", config.sglang.model_path)
        check_servers_model(config.sglang.model_path, config.actor.path)
    check_servers(spec, cores=cores)
    if config.ref is not None and config.ref.path:
        check_model("ref.path", config.ref.path)
    check_dataset("train_dataset.path", config.train_dataset.path)
    for one in config.held_out:
        check_dataset(f"{one.key}.path", one.dataset.path)
    check_run_directory(run)


def check_downloads(spec: ExperimentSpec) -> None:
    """Only servers in pods can be without the run directory, and download what is published."""
    if spec.config.actor.weight_deltas:
        raise ValueError(
            "actor.weight_deltas is true, but here the servers read published weights from the run directory, so "
            "nothing is downloaded; set it to false"
        )


def check_programs(spec: ExperimentSpec) -> None:
    """Only the operator starts agents and tools, whose images cannot run here."""
    for key, programs in (("agents", spec.agents), ("tools", spec.tools)):
        if not programs:
            continue
        hint = (
            "and start the agent yourself with the URL and the key from gateway.json in the run directory"
            if key == "agents"
            else f"start the tool yourself, and set {names.tool_url(programs[0].name)} in trainer.env to its address"
        )
        raise ValueError(
            f"{key} lists {programs[0].name}, which only Kubernetes runs; leave it out ({key}=[]), {hint} (see "
            "docs/agents-kubernetes.md)"
        )


def check_code(code: CodeSpec) -> None:
    """The code can be had outside of Kubernetes: the directory exists."""
    if code.archive is not None:
        raise ValueError(
            "code.archive refers to a ConfigMap, which only Kubernetes has; set code.directory to the directory it was "
            "made from"
        )
    if code.directory is not None and not Path(code.directory).is_dir():
        raise ValueError(f"code.directory: there is no directory {Path(code.directory).absolute()}; correct the path")


def check_script(script: str | None, code: CodeSpec) -> None:
    """A training script given as a file must exist. That of a Git commit is not known yet."""
    if script is None or not script.endswith(".py") or code.git is not None:
        return
    path = Path(code.directory or ".") / script
    if not path.is_file():
        raise ValueError(f"trainer.script: no file at {path.absolute()}; give the path of a training script")


def check_tokenizer(path: str) -> None:
    """A local tokenizer directory must exist."""
    if is_local_path(path) and not Path(path).exists():
        raise ValueError(f"tokenizer_path: no tokenizer at {Path(path).absolute()}; omit it to use actor.path")
