"""``grpo check``: whether an experiment fits its GPUs, its disk and its nodes, computed without a GPU."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from areal_api.load import with_home_expanded
from areal_api.paths import is_local_path
from areal_api.render import experiment_yaml
from areal_api.sizing.gpus import Gpu, gpu_named
from areal_api.sizing.model_shape import ModelShape
from areal_api.sizing.report import Report, Surroundings, gib, size_up
from areal_launcher.console import console_for
from areal_launcher.request import Request

FITS, PROBLEMS = 0, 1
MIB = 2**20
MAX_NODES = 4096


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
    path = experiment.spec.config.actor.path
    from_hub = not is_local_path(path)
    shape = ModelShape.of_directory(cached_model(path) if from_hub else Path(path))
    gpu = gpu_named(options.gpu) if options.gpu else smallest_gpu()
    nodes = None if options.nodes is None else parse_nodes(options.nodes)
    report = size_up(experiment.spec, shape, Surroundings(gpu=gpu, nodes=nodes, from_hub=from_hub))
    if options.as_json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        print_report(report, gpu)
    return FITS if report.fits else PROBLEMS


def parse_nodes(text: str) -> list[int]:
    """Free GPUs of each node: ``8,8,4``, or ``16x8`` for 16 nodes of 8. Raises ``ValueError`` with the value."""
    found: list[int] = []
    for part in text.split(","):
        count, _, gpus = part.strip().rpartition("x")
        if not gpus.isdecimal() or len(gpus) > 4 or (count and (not count.isdecimal() or int(count[:9]) > MAX_NODES)):
            raise ValueError(f"--nodes is {text!r}; write the free GPUs of each node, for example 8,8 or 4x8")
        found += [int(gpus)] * int(count or 1)
    if len(found) > MAX_NODES:
        raise ValueError(f"--nodes names {len(found)} nodes; at most {MAX_NODES} are checked")
    return found


def cached_model(name: str) -> Path:
    """The directory of a hub model's config.json, from the cache or the hub. Raises ``ValueError`` with the fix."""
    advice = "set config.actor.path to a directory with the model's config.json; its weights are not needed"
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError
    except ModuleNotFoundError as error:
        raise ValueError(f"actor.path {name!r} is on the hub, and {error.name} is not installed; {advice}") from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns of every retry
    try:
        return Path(hf_hub_download(name, "config.json", etag_timeout=10)).parent
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"actor.path {name!r} cannot be read from the hub: {reason}; {advice}") from error


def smallest_gpu() -> Gpu | None:
    """The GPU of this machine with the least memory, by nvidia-smi; None without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    rows = [line.rsplit(",", 1) for line in done.stdout.splitlines() if "," in line] if done.returncode == 0 else []
    gpus = [Gpu(name.strip(), int(size) * MIB) for name, size in rows if size.strip().isdecimal()]
    return min(gpus, key=lambda gpu: gpu.bytes, default=None)


def print_report(report: Report, gpu: Gpu | None) -> None:
    """Tables for a person, then each problem with its fix."""
    console = console_for()
    if report.trainer is not None:
        console.print(f"Microbatches of at most {report.tokens_per_microbatch:,} tokens.", markup=False)
        rows = [(name, gib(size)) for name, size in report.trainer.by_part().items() if size]
        console.print(table("Trainer, per GPU", [*rows, ("total", gib(report.trainer.total))]))
    if report.server is not None:
        server = report.server
        rows = [
            ("weights per GPU", gib(server.weights_bytes)),
            ("KV cache per GPU", gib(max(0, server.kv_cache_bytes))),
        ]
        rows += [("KV cache tokens", f"{server.kv_tokens:,}"), ("longest sequences at once", f"{server.sequences:,}")]
        console.print(table("Server", rows))
    disk = report.disk
    rows = [("published weights", gib(disk.weights_bytes)), ("recovery checkpoints", gib(disk.recovery_bytes))]
    rows += [("saved models", gib(disk.checkpoints_bytes)), ("total", gib(disk.total_bytes))]
    console.print(table("Disk", rows))
    if gpu is not None:
        console.print(f"Compared with {gpu.name}.", markup=False)
    elif report.trainer is not None or report.server is not None:
        console.print("No GPU was found here, so GPU memory was not compared; name one with --gpu.", markup=False)
    for problem in report.problems:
        console.print(f"✗ {problem}", markup=False, soft_wrap=True)
    if report.fits:
        console.print("✓ the experiment fits", markup=False)


def table(title: str, rows: Sequence[tuple[str, str]]) -> Table:
    """Two columns, names and sizes."""
    found = Table(title=title, show_header=False, title_justify="left")
    found.add_column()
    found.add_column(justify="right")
    for row in rows:
        found.add_row(*row)
    return found
