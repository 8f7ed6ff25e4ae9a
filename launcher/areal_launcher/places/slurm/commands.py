"""Slurm's own commands: running them, and reading what they print. Needs no accounting (sacct)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from areal_launcher.errors import RunError

TIMEOUT_S = 60.0
ACTIVE = frozenset(
    {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "REQUEUED", "REQUEUE_HOLD", "SIGNALING",
     "RESIZING", "REQUEUE_FED", "SPECIAL_EXIT", "STAGE_OUT"}
)  # fmt: skip
QUEUED = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})
GPU = re.compile(r"\bgpu:(?:[^:,()]+:)?(\d+)")
# sinfo's compact states of nodes that run jobs now or later. A node that does not answer has a star.
CAN_RUN = re.compile(r"(idle|alloc|mix|comp|resv|maint|plnd|npc|pow_dn|pow_up)[^*]?")
NODE_COLUMNS = "%P|%G|%t|%l|%L|%c"
JOB_COLUMNS = "%i|%T|%B|%N|%V|%S|%r"  # no text of a user's: the reason is Slurm's
TIME_LIMIT = re.compile(r"(?:(\d{1,6})-)?(\d{1,8})(?::(\d{1,8}))?(?::(\d{1,8}))?")
UNLIMITED = ("infinite", "unlimited")
KEPT_VARIABLES = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})
BREAKING_VARIABLES = frozenset({"SBATCH_ARRAY_INX", "SBATCH_CLUSTERS", "SBATCH_WAIT", "SBATCH_GET_USER_ENV"})


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
    waited_s: float = 0.0  # from its submission to its last start; 0 if it has not started

    @property
    def active(self) -> bool:
        """Whether it is queued, runs or ends."""
        return self.state in ACTIVE


@dataclass(frozen=True)
class Partition:
    """A partition: its nodes that can run jobs, the most GPUs and CPUs of one, and the limit of jobs that set none."""

    name: str
    nodes: int
    gpus: int
    time_s: float | None = None  # None: unlimited or unknown
    cpus: int | None = None  # None: unknown


def run(tool: str, *arguments: str, stdin: str = "", timeout_s: float = TIMEOUT_S) -> str:
    """What a command prints. Raises ``SlurmError`` if it fails, and ``ValueError`` if it is not installed."""
    done = execute(tool, *arguments, stdin=stdin, timeout_s=timeout_s)
    if done.returncode:
        raise SlurmError(clean(done.stderr) or f"{tool} failed with exit status {done.returncode}")
    return done.stdout


def run_for_error(tool: str, *arguments: str, stdin: str = "") -> tuple[int, str]:
    """Exit status and standard error of a command, for one that prints its result there."""
    done = execute(tool, *arguments, stdin=stdin, timeout_s=TIMEOUT_S)
    return done.returncode, done.stderr


def execute(tool: str, *arguments: str, stdin: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a command without the variables that would change what it prints or submits."""
    path = shutil.which(tool)
    if path is None:
        raise ValueError(f"{tool} is not installed here; run grpo --on slurm on a login node of the cluster")
    try:
        return subprocess.run(
            [path, *arguments],
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            check=False,
            env=dict(os.environ) if tool == "srun" else without_options(os.environ),
        )
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{tool} did not answer within {timeout_s:.0f} s; check that slurmctld is up") from error
    except OSError as error:
        raise ValueError(f"{tool} cannot be started: {error.strerror}") from error


def without_options(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` without the options that Slurm's commands read from it, and without those of a surrounding job.

    Defaults of sbatch such as SBATCH_ACCOUNT stay, because a user sets them for every job.
    """
    return {
        name: value
        for name, value in environ.items()
        if not (
            name.startswith(("SQUEUE_", "SINFO_", "SCONTROL_", "SCANCEL_"))
            or (name.startswith("SLURM_") and name not in KEPT_VARIABLES)
            or name in BREAKING_VARIABLES
        )
    }


def clean(text: str) -> str:
    """The last messages of a command in one line, without the command's name."""
    lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line.strip()) for line in text.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines[-3:]))


def fields(line: str) -> dict[str, str]:
    """``Key=Value Key=Value`` as a dictionary."""
    return dict(part.split("=", 1) for part in line.split() if "=" in part)


def find_job(job_id: str) -> Job | None:
    """A job, or the first component of a heterogeneous one; None if slurmctld has forgotten it after its end."""
    try:
        output = run("squeue", "--all", "--noheader", "--states=all", f"--jobs={job_id}", f"--format={JOB_COLUMNS}")
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    rows = [line.split("|", 6) for line in output.splitlines() if line.count("|") >= 6]
    row = next((row for row in rows if row[0] in (job_id, f"{job_id}+0")), None)
    if row is None:
        return None
    _, state, host, nodes, submitted, started, reason = row
    return Job(job_id, state, reason, nodes or "(null)", host, seconds_between(submitted, started))


def is_preempted(job_id: str) -> bool:
    """Whether Slurm has told a running job to make room for another: its grace time runs."""
    times = run("squeue", "--all", "--noheader", f"--jobs={job_id}", "--Format=PreemptTime:32").split()
    return any(time != "N/A" for time in times)


def seconds_between(first: str, second: str) -> float:
    """Seconds between two times as squeue prints them; 0 if one is unknown or they are in the wrong order."""
    try:
        return max(0.0, (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds())
    except ValueError:
        return 0.0


def partitions(names: str | None) -> list[Partition]:
    """The partitions ``names``, separated by commas, or the default one. Empty if there are none."""
    wanted = None if names is None else set(names.split(","))
    output = run("sinfo", "--all", "--noheader", "--Node", f"--format={NODE_COLUMNS}")  # --all excludes --partition
    found: dict[str, Partition] = {}
    for line in output.splitlines():
        if line.count("|") != 5:
            continue
        name, gres, state, limit, default, cpus = line.split("|")
        if not (name.endswith("*") if wanted is None else name.rstrip("*") in wanted):
            continue
        usable = CAN_RUN.fullmatch(state) is not None
        gpus = sum(int(count) for count in GPU.findall(gres)) if usable else 0
        time_s = time_limit_s(default) if default != "n/a" else time_limit_s(limit)
        before = found.get(name.rstrip("*"), Partition(name.rstrip("*"), 0, 0, time_s))
        most = max(before.cpus or 0, int(cpus) if usable and cpus.isdecimal() else 0) or None
        found[before.name] = replace(before, nodes=before.nodes + usable, gpus=max(before.gpus, gpus), cpus=most)
    return list(found.values())


def time_limit_s(text: str) -> float | None:
    """Seconds of a limit as sbatch reads it: ``30``, ``1:30:00``, ``2-12``; None if it is unlimited or unknown."""
    match = TIME_LIMIT.fullmatch(text.strip())
    if match is None:
        return None
    days, first, second, third = (int(part) if part else None for part in match.groups())
    if days is not None:
        hours, minutes, seconds = first or 0, second or 0, third or 0
    elif third is not None:
        hours, minutes, seconds = first or 0, second or 0, third
    else:
        hours, minutes, seconds = 0, first or 0, second or 0
    return 86400.0 * (days or 0) + 3600 * hours + 60 * minutes + seconds


def is_time_limit(text: str) -> bool:
    """Whether sbatch reads ``text`` as a time limit."""
    return TIME_LIMIT.fullmatch(text.strip()) is not None or text.strip().lower() in UNLIMITED


def select_type() -> str:
    """SelectType of slurm.conf: how the cluster shares nodes between jobs."""
    found = re.search(r"^SelectType\s*=\s*(\S+)", run("scontrol", "show", "config"), re.MULTILINE)
    return found.group(1) if found else "unknown"


def node_addresses(names: Sequence[str]) -> dict[str, str]:
    """NodeAddr of nodes: the host name or address at which Slurm reaches each."""
    output = run("scontrol", "show", "node", "--oneliner", ",".join(names))
    shown = [fields(line) for line in output.splitlines()]
    return {one["NodeName"]: one.get("NodeAddr", one["NodeName"]) for one in shown if "NodeName" in one}


def host_names(hostlist: str) -> list[str]:
    """The nodes of an expression such as ``n[1-3]``."""
    return run("scontrol", "show", "hostnames", hostlist).split()
