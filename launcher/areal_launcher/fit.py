"""Whether an experiment fits, as seen from this machine: its model's config.json, its GPUs and its disk."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from areal_api import names
from areal_api.experiment import ExperimentSpec
from areal_api.paths import is_local_path
from areal_api.sizing.gpus import Gpu, gpu_named, gpu_of_labels
from areal_api.sizing.known_models import known_shape
from areal_api.sizing.model_shape import MissingSizeError, ModelShape
from areal_api.sizing.report import Report, Surroundings, UnknownModel, size_up
from areal_api.sizing.trained_types import training_problem
from areal_launcher.gpu_machine import (
    GpuMachine,
    flash_attention_problems,
    image_flash_attention_problems,
    software_problems,
    this_machine,
)

HUB_TIMEOUT_S = 10.0


def require_fit(report: Report, *, force: bool, notify: Callable[[str], None]) -> None:
    """Raise ``ValueError`` with every problem, unless ``force``; ``notify`` receives what does not prevent a run."""
    for text in report.warnings:
        notify(f"warning: {text}")
    for text in report.not_checked:
        notify(f"not checked: {text}")
    if not report.problems:
        return
    if not force:
        listed = "\n".join(f"  {problem}" for problem in report.problems)
        raise ValueError(f"the experiment does not fit:\n{listed}\n--force runs it anyway")
    for problem in report.problems:
        notify(f"--force: running although {problem}")


def fit_here(spec: ExperimentSpec) -> Report:
    """The report for a run on this machine. Never asks the hub."""
    machine = this_machine() if needs_gpu(spec) else GpuMachine()
    where = Surroundings(
        gpu=machine.smallest_gpu,
        by_selectors=False,
        free_disk_bytes=free_bytes(names.run_dir(spec.config)),
        problems=tuple(software_problems(spec, machine, os.environ)),
    )
    return size_up(spec, local_model(spec.config.actor.path), where)


def fit_in_jobs(spec: ExperimentSpec, *, gpu: Gpu | None = None) -> Report:
    """The report for a run in jobs of a cluster that shares this machine's file system and, unless the jobs run in a
    container, its packages. ``gpu``: of the cluster, by default the one that the trainer's node selector names.
    """
    problems = () if spec.slurm.container_image else tuple(flash_attention_problems(spec, os.environ))
    where = Surroundings(
        gpu=gpu or gpu_of_labels(spec.trainer.node_selector),
        free_disk_bytes=free_bytes(names.run_dir(spec.config)),
        problems=problems,
    )
    return size_up(spec, local_model(spec.config.actor.path), where)


def gpu_in_jobs(spec: ExperimentSpec, name: str | None) -> Gpu | None:
    """The GPU of that name, else the one of the trainer's node selector; None without both, or if none is needed."""
    gpu = gpu_named(name) if name else gpu_of_labels(spec.trainer.node_selector)
    return gpu if needs_gpu(spec) else None


def fit_in_cluster(spec: ExperimentSpec) -> Report:
    """The report for a run in Kubernetes, with the GPU that the trainer's node selector names. Never asks the hub."""
    path = spec.config.actor.path
    where = Surroundings(
        gpu=gpu_of_labels(spec.trainer.node_selector),
        from_hub=not is_local_path(path),
        problems=tuple(image_flash_attention_problems(spec)),
    )
    return size_up(spec, local_model(path), where)


def needs_gpu(spec: ExperimentSpec) -> bool:
    """Whether a process of the experiment runs on a GPU."""
    return "cuda" in (spec.trainer.device, *(one.servers.device for one in spec.servers.groups))


def local_model(path: str) -> ModelShape | UnknownModel:
    """The model's shape from this machine's files and the table of known models.

    Raises ``ValueError`` for a config.json on this machine that is not a model's. A model elsewhere is unknown.
    """
    try:
        directory = Path(path) if is_local_path(path) else hub_config(path, offline=True)
    except ValueError as error:
        return known_shape(path) or UnknownModel(str(error))
    if not (directory / "config.json").exists():
        return UnknownModel(f"{directory / 'config.json'} is not on this machine")
    try:
        return ModelShape.of_directory(directory)
    except MissingSizeError as error:
        return UnknownModel(str(error), error.kind)


def model_for_check(path: str) -> ModelShape | UnknownModel:
    """The model's shape, from the hub if need be. Raises ``ValueError`` with the fix.

    A type of model that the trainer refuses, or pads, is reported also if its sizes are unknown.
    """
    model = UnknownModel("") if is_local_path(path) else local_model(path)
    if isinstance(model, ModelShape):
        return model
    try:
        return ModelShape.of_directory(Path(path) if is_local_path(path) else hub_config(path, offline=False))
    except MissingSizeError as error:
        if training_problem(error.kind, attn_impl=None) is None:
            raise
        return UnknownModel(str(error), error.kind)


def hub_config(name: str, *, offline: bool) -> Path:
    """The directory of a hub model's config.json, from the cache or the hub. Raises ``ValueError`` with the fix."""
    advice = "set config.actor.path to a directory with the model's config.json; its weights are not needed"
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError
    except ModuleNotFoundError as error:
        raise ValueError(f"actor.path {name!r} is on the hub, and {error.name} is not installed; {advice}") from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns of every retry
    try:
        return Path(hf_hub_download(name, "config.json", etag_timeout=HUB_TIMEOUT_S, local_files_only=offline)).parent
    except (OSError, ValueError, HfHubHTTPError) as error:
        if offline:
            raise ValueError(f"actor.path {name!r} is on the hub and not in this machine's cache") from error
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"actor.path {name!r} cannot be read from the hub: {reason}; {advice}") from error


def free_bytes(run: Path) -> int:
    """Free space for ``run``: of its file system, and what an earlier start of the same run wrote."""
    existing = next(folder for folder in (run, *run.absolute().parents) if folder.is_dir())
    parts = (names.weights_dir(run), names.recover_dir(run), names.checkpoints_dir(run))
    return shutil.disk_usage(existing).free + sum(size_of(folder) for folder in parts)


def size_of(folder: Path) -> int:
    """Bytes of the files below ``folder``; 0 if it does not exist."""
    total = 0
    for directory, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.lstat(os.path.join(directory, file)).st_size
            except FileNotFoundError:
                continue
    return total
