"""Slurm's own commands: running them, and reading what they print. Needs no accounting (sacct)."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from areal_launcher.errors import RunError

TIMEOUT_S = 60.0
ACTIVE = frozenset(
    {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "REQUEUED", "REQUEUE_HOLD", "SIGNALING",
     "RESIZING", "REQUEUE_FED", "SPECIAL_EXIT", "STAGE_OUT"}
)  # fmt: skip
QUEUED = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})
GPU = re.compile(r"\bgpu:(?:[^:,()]+:)?(\d+)")


class SlurmError(RunError):
    """A command of Slurm failed; the text is what it printed."""


@dataclass(frozen=True)
class Job:
    """A job, as slurmctld knows it."""

    id: str
    state: str
    reason: str
    nodes: str
    batch_host: str  # the node of the batch script

    @property
    def active(self) -> bool:
        """Whether it is queued, runs or ends."""
        return self.state in ACTIVE


@dataclass(frozen=True)
class Partition:
    """A partition: its nodes that can run jobs, and the most GPUs of one of them."""

    name: str
    nodes: int
    gpus: int


def run(tool: str, *arguments: str, stdin: str = "") -> str:
    """What a command prints. Raises ``SlurmError`` if it fails, and ``ValueError`` if it is not installed."""
    path = shutil.which(tool)
    if path is None:
        raise ValueError(f"{tool} is not installed here; run grpo --on slurm on a login node of the cluster")
    try:
        done = subprocess.run(
            [path, *arguments], input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{tool} did not answer within {TIMEOUT_S:.0f} s; check that slurmctld is up") from error
    if done.returncode:
        raise SlurmError(clean(done.stderr) or f"{tool} failed with exit status {done.returncode}")
    return done.stdout


def clean(text: str) -> str:
    """The last messages of a command in one line, without the command's name."""
    lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line.strip()) for line in text.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines[-3:]))


def fields(line: str) -> dict[str, str]:
    """``Key=Value Key=Value`` as a dictionary."""
    return dict(part.split("=", 1) for part in line.split() if "=" in part)


def find_job(job_id: str) -> Job | None:
    """A job; None if slurmctld has forgotten it, some minutes after its end."""
    try:
        output = run("scontrol", "show", "job", "--oneliner", job_id)
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    shown = fields(output.splitlines()[0]) if output.strip() else {}
    return Job(
        job_id,
        shown.get("JobState", "UNKNOWN"),
        shown.get("Reason", "None"),
        shown.get("NodeList", "(null)"),
        shown.get("BatchHost", "(null)"),
    )


def partitions(name: str | None) -> list[Partition]:
    """The partition ``name``, or the default one. Empty if there is none."""
    only = ["--partition", name] if name is not None else []
    rows = [line.split("|") for line in run("sinfo", "--noheader", "--format=%P|%D|%G|%t", *only).splitlines()]
    found: dict[str, Partition] = {}
    for partition, nodes, gres, state in (row for row in rows if len(row) == 4):
        if name is None and not partition.endswith("*"):
            continue
        key = partition.rstrip("*")
        usable = int(nodes) if not re.match(r"(down|drain|drng|fail|inval|unk|boot|plnd_down)", state) else 0
        gpus = sum(int(count) for count in GPU.findall(gres)) if usable else 0
        before = found.get(key, Partition(key, 0, 0))
        found[key] = Partition(key, before.nodes + usable, max(before.gpus, gpus))
    return list(found.values())


def node_addresses(names: Sequence[str]) -> dict[str, str]:
    """NodeAddr of nodes: the host name or address at which Slurm reaches each."""
    output = run("scontrol", "show", "node", "--oneliner", ",".join(names))
    shown = [fields(line) for line in output.splitlines()]
    return {one["NodeName"]: one.get("NodeAddr", one["NodeName"]) for one in shown if "NodeName" in one}


def host_names(hostlist: str) -> list[str]:
    """The nodes of an expression such as ``n[1-3]``."""
    return run("scontrol", "show", "hostnames", hostlist).split()


def run_for_error(tool: str, *arguments: str, stdin: str = "") -> tuple[int, str]:
    """Exit status and standard error of a command, for one that prints its result there."""
    path = shutil.which(tool)
    if path is None:
        raise ValueError(f"{tool} is not installed here; run grpo --on slurm on a login node of the cluster")
    done = subprocess.run(
        [path, *arguments], input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    return done.returncode, done.stderr
