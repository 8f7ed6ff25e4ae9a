"""Submits the job of a run: checks, layout, files, sbatch."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from areal_api import names
from areal_api.experiment import ExperimentSpec, GRPOExperiment
from areal_api.render import experiment_yaml
from areal_api.slurm import SlurmSpec
from areal_launcher.core.checks import check_experiment
from areal_launcher.core.plan import gpus_per_server, gpus_per_trainer_node, plan_run
from areal_launcher.core.resume import check_resume
from areal_launcher.places.slurm import commands
from areal_launcher.places.slurm.job import (
    SubmittedJob,
    batch_script,
    job_dir,
    layout_file,
    probe_file,
    sbatch_arguments,
    submitted_experiment,
    write_job,
)
from areal_launcher.places.slurm.layout import Layout, layouts
from areal_launcher.run_files import write_atomic

SIGNAL_RESOLUTION_S = 60  # Slurm may send a signal earlier than sbatch --signal asks, by up to this


def submit(experiment: GRPOExperiment, run: Path) -> SubmittedJob:
    """Check everything that can be checked here, and submit. Raises ``ValueError``, with nothing queued."""
    check_experiment(experiment.spec, run=run, cores=experiment.spec.slurm.cpus_per_node or 2**16)
    check_resume(experiment.spec.config, run)
    plan_run(experiment, run=run, key_file=run / "api-key", threads=1)  # refuses variables that cannot be set
    check_container(experiment.spec, run)
    components = plan_job(experiment)
    arguments = sbatch_arguments(experiment, run, components)
    job_dir(run).mkdir(parents=True, exist_ok=True)
    names.logs_dir(run).mkdir(parents=True, exist_ok=True)
    estimate(arguments, experiment.spec.slurm)  # sbatch alone would queue a job that can never start
    nonce = secrets.token_hex(16)
    write_atomic(probe_file(run), nonce)
    write_atomic(submitted_experiment(run), experiment_yaml(experiment))
    write_atomic(layout_file(run), json.dumps([dataclasses.asdict(layout) for layout in components]))
    try:
        output = commands.run("sbatch", "--parsable", *arguments, stdin=batch_script(run, nonce))
    except commands.SlurmError as error:
        raise ValueError(f"sbatch refuses the job: {error}{advice(str(error), experiment.spec.slurm)}") from error
    job = SubmittedJob(output.strip().splitlines()[-1].partition(";")[0], time.time())
    write_job(run, job)
    return job


def check_container(spec: ExperimentSpec, run: Path) -> None:
    """Raise ``ValueError`` for what a container cannot have, or options of a container without one."""
    slurm = spec.slurm
    if slurm.container_image is None:
        if slurm.container_args:
            raise ValueError("slurm.containerArgs is set without slurm.containerImage; set both or none")
        return
    if spec.code.needs_packages:
        raise ValueError(
            "code.requirements is set together with slurm.containerImage; packages are installed for the environment "
            "outside of the container: put them into the image"
        )
    if any(character in str(run) for character in ":,"):
        raise ValueError(
            f"cluster.fileroot: {run} has a colon or a comma, so it cannot be mounted in a container; choose another"
        )


def plan_job(experiment: GRPOExperiment) -> list[Layout]:
    """The layout of each component of the job. Raises ``ValueError`` if the partitions cannot hold it."""
    spec, slurm = experiment.spec, experiment.spec.slurm
    trainer = partition_named(slurm.partition)
    servers = trainer
    if slurm.servers is not None and slurm.servers.partition is not None:
        servers = partition_named(slurm.servers.partition, key="slurm.servers.partition")
    for needed, key, partition in (
        (gpus_per_trainer_node(spec), "trainer", trainer),
        (gpus_per_server(spec), "servers", servers),
    ):
        if needed and not partition.gpus:
            raise ValueError(
                f"{key}.device is cuda, but no node of partition {partition.name} that can run jobs has a GPU; choose "
                f"another --partition, or set {key}.device=cpu"
            )
    if gpus_per_trainer_node(spec) or gpus_per_server(spec):
        check_selects_gpus()
    check_time(slurm, trainer)
    found = [
        fitted(layout, partition) if slurm.cpus_per_node is None else layout
        for layout, partition in zip(
            layouts(spec, gpus=trainer.gpus, server_gpus=servers.gpus), [trainer, servers], strict=False
        )
    ]
    for layout, partition in zip(found, [trainer, servers], strict=False):
        if layout.nodes > partition.nodes:
            raise ValueError(
                f"the run needs {layout.nodes} nodes, partition {partition.name} has {partition.nodes} that can run "
                "jobs; lower slurm.nodes, servers.replicas or trainer.nodes"
            )
    return found


def fitted(layout: Layout, partition: commands.Partition) -> Layout:
    """The layout with at most as many CPUs per node as the nodes have."""
    return replace(layout, cpus_per_node=min(layout.cpus_per_node, partition.cpus or layout.cpus_per_node))


def check_selects_gpus() -> None:
    """Raise ``ValueError`` for a cluster whose steps cannot have GPUs."""
    if commands.select_type() == "select/linear":
        raise ValueError(
            "the cluster has SelectType=select/linear, with which Slurm gives no GPUs to the steps of a job; run on a "
            "cluster with select/cons_tres, or on Ray within a job of this one"
        )


def check_time(slurm: SlurmSpec, partition: commands.Partition) -> None:
    """Raise ``ValueError`` for a time limit that is none, or leaves no time to train."""
    if slurm.time is not None and not commands.is_time_limit(slurm.time):
        raise ValueError(
            f"slurm.time is {slurm.time!r}, which sbatch does not read; write --time as minutes, hours:minutes:seconds "
            "or days-hours, such as 90, 12:00:00 or 2-00"
        )
    limit_s = commands.time_limit_s(slurm.time) if slurm.time is not None else partition.time_s
    if limit_s and limit_s <= slurm.stop_seconds + SIGNAL_RESOLUTION_S:
        where = f"slurm.time is {slurm.time}" if slurm.time is not None else f"partition {partition.name} has a limit"
        raise ValueError(
            f"{where}, {limit_s:.0f} s, and the run would stop slurm.stopSeconds = {slurm.stop_seconds} s (and up to "
            f"{SIGNAL_RESOLUTION_S} s more) before it: raise --time, or lower slurm.stopSeconds"
        )


def partition_named(name: str | None, *, key: str = "slurm.partition") -> commands.Partition:
    """A partition, or the default one. Raises ``ValueError`` if there is none, naming those that exist.

    Of several, separated by commas, Slurm takes the one that can start first: the result describes what all can hold.
    """
    name = name or os.environ.get("SBATCH_PARTITION") or None
    try:
        found = commands.partitions(name)
        if found:
            return commands.Partition(
                ",".join(one.name for one in found),
                max(one.nodes for one in found),
                min((one.gpus for one in found if one.gpus), default=0),
                min((one.time_s for one in found if one.time_s), default=None),
                min((one.cpus for one in found if one.cpus), default=None),
            )
        known = commands.run("sinfo", "--noheader", "--format=%R").split()
    except commands.SlurmError as error:
        raise ValueError(f"sinfo failed: {error}") from error
    shown = ", ".join(sorted(set(known))) or "none"
    if name is None:
        raise ValueError(f"the cluster has no default partition; give --partition: {shown}")
    raise ValueError(f"{key}: no partition {name}; the cluster has {shown}")


def estimate(arguments: Sequence[str], slurm: SlurmSpec) -> str:
    """When Slurm would start a job with these arguments, in its own words. Raises ``ValueError`` if it never would."""
    status, text = commands.run_for_error("sbatch", "--test-only", *arguments, stdin="#!/bin/sh\n")
    if status:
        raise ValueError(f"sbatch refuses the job: {commands.clean(text)}{advice(text, slurm)}")
    return commands.clean(text)


def advice(message: str, slurm: SlurmSpec) -> str:
    """What to change, with its value, for the refusals that users meet most."""
    hints = {
        "account": f"slurm.account is {slurm.account}: choose another --account, or another --qos ({slurm.qos})",
        "qos": f"slurm.qos is {slurm.qos}: choose another --qos",
        "partition": f"slurm.partition is {slurm.partition}: choose another --partition",
        "node configuration": "lower slurm.nodes, cluster.n_gpus_per_node or slurm.cpusPerNode",
        "time limit": f"slurm.time is {slurm.time}: lower --time",
        "feature": f"slurm.constraint is {slurm.constraint}: choose another --constraint",
    }
    return next((f"; {hint}" for word, hint in hints.items() if word in message.lower()), "")
