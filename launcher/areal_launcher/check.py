"""``grpo check``: whether an experiment fits its GPUs, its disk and its nodes, computed without a GPU."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from areal_api import names
from areal_api.load import with_home_expanded
from areal_api.paths import is_local_path
from areal_api.render import experiment_yaml
from areal_api.sizing.disk import DiskUse
from areal_api.sizing.gpus import Gpu, gpu_named, gpu_of_labels
from areal_api.sizing.report import Report, Surroundings, gib, size_up
from areal_launcher.console import console_for
from areal_launcher.fit import free_bytes, model_for_check, needs_gpu
from areal_launcher.gpu_machine import GpuMachine, software_problems, this_machine, visible_gpus
from areal_launcher.request import Request

FITS, PROBLEMS = 0, 1
MAX_NODES = 4096
MAX_NODE_GPUS = 64


@dataclass(frozen=True)
class CheckOptions:
    """What the user knows about where the experiment is to run."""

    gpu: str | None = None
    nodes: str | None = None
    as_json: bool = False
    print_config: bool = False


def check(request: Request, options: CheckOptions) -> int:
    """Print the report; the exit status is 0 if the experiment fits and 1 if it does not."""
    experiment = with_home_expanded(request.load())
    if options.print_config:
        sys.stdout.write(experiment_yaml(experiment))
    spec = experiment.spec
    machine = this_machine() if needs_gpu(spec) else GpuMachine()
    gpu = gpu_of_labels(spec.trainer.node_selector) if options.gpu is None else gpu_named(options.gpu)
    nodes = None if options.nodes is None else parse_nodes(options.nodes)
    here = gpu is None and nodes is None and bool(machine.gpus)  # no other place is named
    where = Surroundings(
        gpu=gpu or machine.smallest_gpu if needs_gpu(spec) else None,
        by_selectors=not here,
        nodes=[len(visible_gpus(os.environ))] if here else nodes,
        free_disk_bytes=free_bytes(names.run_dir(spec.config)) if here else None,
        from_hub=not here and not is_local_path(spec.config.actor.path),
        problems=tuple(software_problems(spec, machine, os.environ)),
    )
    report = size_up(spec, model_for_check(spec.config.actor.path), where)
    if options.as_json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        print_report(report, where.gpu)
    return FITS if report.fits else PROBLEMS


def parse_nodes(text: str) -> list[int]:
    """Free GPUs of each node: ``8,8,4``, or ``16x8`` for 16 nodes of 8. Raises ``ValueError`` with the value."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(?:([0-9]{1,4})x)?([0-9]{1,4})", part.strip())
        if match is None:
            raise ValueError(f"--nodes is {text!r}; write the free GPUs of each node, for example 8,8 or 4x8")
        if int(match[2]) > MAX_NODE_GPUS:
            raise ValueError(
                f"--nodes is {text!r}, with {match[2]} GPUs of a node; at most {MAX_NODE_GPUS} are checked"
            )
        found += [int(match[2])] * int(match[1] or 1)
        if len(found) > MAX_NODES:
            raise ValueError(f"--nodes names more than {MAX_NODES} nodes, the most that are checked")
    return found


def print_report(report: Report, gpu: Gpu | None) -> None:
    """Tables for a person, then each problem with its fix."""
    console = console_for()
    if report.trainer is not None:
        console.print(f"Microbatches of at most {report.tokens_per_microbatch:,} tokens.", markup=False)
        rows = [(name, gib(size)) for name, size in report.trainer.by_part().items() if size]
        console.print(table("Trainer, per GPU", [*rows, ("total", gib(report.trainer.total))]))
    pools = [(f"Server of pool {name}", memory) for name, memory in report.pools.items()]
    for title, server in [*([] if report.server is None else [("Server", report.server)]), *pools]:
        rows = [
            ("weights per GPU", gib(server.weights_bytes)),
            ("KV cache per GPU", gib(max(0, server.kv_cache_bytes))),
        ]
        rows += [("KV cache tokens", f"{server.kv_tokens:,}"), ("longest sequences at once", f"{server.sequences:,}")]
        console.print(table(title, rows))
    if report.disk is not None:
        console.print(table("Disk", disk_rows(report.disk)))
    if gpu is not None:
        console.print(f"Compared with {gpu.name}.", markup=False)
    for text in report.not_checked:
        console.print(f"Not checked: {text}", markup=False, soft_wrap=True)
    for text in report.warnings:
        console.print(f"! {text}", markup=False, soft_wrap=True)
    for problem in report.problems:
        console.print(f"✗ {problem}", markup=False, soft_wrap=True)
    if report.fits:
        console.print("✓ what could be checked fits" if report.not_checked else "✓ the experiment fits", markup=False)


def disk_rows(disk: DiskUse) -> list[tuple[str, str]]:
    """Sizes on disk by kind."""
    parts = {
        "published weights": disk.weights_bytes,
        "recovery checkpoints": disk.recovery_bytes,
        "saved models": disk.checkpoints_bytes,
        "downloaded model": disk.model_cache_bytes,
        "logs": disk.logs_bytes,
        "samples": disk.rollouts_bytes,
        "total": disk.total_bytes,
    }
    return [(name, gib(size)) for name, size in parts.items() if size]


def table(title: str, rows: Sequence[tuple[str, str]]) -> Table:
    """Two columns, names and sizes."""
    found = Table(title=title, show_header=False, title_justify="left")
    found.add_column()
    found.add_column(justify="right")
    for row in rows:
        found.add_row(*row)
    return found
