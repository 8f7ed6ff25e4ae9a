"""A real Slurm cluster of several nodes on this machine: one slurmctld, one slurmd per node, and a separate munged.

Needs root and Debian's packages slurmctld, slurmd, slurm-client and munge. All nodes are this host, so their
file system is shared. Nodes have GPUs that do not exist (character devices that nothing opens), for scheduling only.
Each node has the feature only-<node>. Partition last is hidden and has the last node.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hack.cluster.control_plane import die_with_parent, free_ports

TOOLS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
START_S = 120.0  # for a command or the end of a daemon
WAIT_S = 400.0  # for whatever a test waits for, on a busy machine
UP = ("idle", "mixed", "allocated")
NODE_CPUS = 8
NODE_GPUS = 4
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={work}/munge.socket,cred_expire=30
CryptoType=crypto/munge
StateSaveLocation={work}/state
SlurmdSpoolDir={work}/spool-%n
SlurmctldPidFile={work}/slurmctld.pid
SlurmdPidFile={work}/slurmd-%n.pid
SlurmctldLogFile={work}/slurmctld.log
SlurmdLogFile={work}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
MpiDefault=none
KillWait={kill_wait_s}
SlurmdTimeout={node_timeout_s}
MessageTimeout=30
BatchStartTimeout=120
UnkillableStepTimeout=600
InactiveLimit=0
MinJobAge=300
OverTimeLimit=0
{node_lines}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes={nodes} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes={nodes} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=last Nodes={last} Hidden=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=120
PartitionName=short Nodes={nodes} MaxTime=00:02:00 State=UP PriorityTier=1
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=20000 Gres=gpu:{gpus} "
    "Feature=only-{name}"
)


def missing() -> str | None:
    """Why no cluster can be started here; None if one can."""
    absent = [tool for tool in TOOLS if tool_path(tool) is None]
    if absent:
        return f"{', '.join(absent)} not installed: apt-get install --no-install-recommends {' '.join(PACKAGES)}"
    return None if os.geteuid() == 0 else "slurmd must run as root here"


def tool_path(tool: str) -> str | None:
    """Where a command of Slurm is installed; the daemons are in sbin."""
    return shutil.which(tool, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


class SlurmCluster:
    """A running cluster. ``environment`` selects it for every command of Slurm."""

    def __init__(self, work: Path, *, nodes: int, kill_wait_s: int = 5, node_timeout_s: int = 30) -> None:
        self.work = work
        self.nodes = [f"n{index + 1}" for index in range(nodes)]
        self.environment = {"SLURM_CONF": str(work / "slurm.conf")}
        self._kill_wait_s = kill_wait_s
        self._node_timeout_s = node_timeout_s
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start every daemon and wait until all nodes are idle."""
        for name in ("state", *(f"spool-{node}" for node in self.nodes)):
            (self.work / name).mkdir(parents=True, exist_ok=True)
        self._write_config()
        key = self.work / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        files = {"key": key, "pid": self.work / "munge.pid", "log": self.work / "munge.log", "seed": self.work / "seed"}
        options = [f"--{name}-file={path}" for name, path in files.items()]
        self._run("munged", "--foreground", "--force", f"--socket={self.work}/munge.socket", *options)
        wait_until(lambda: (self.work / "munge.socket").exists(), "munged listens")
        self._run("slurmctld", "-D")
        for node in self.nodes:
            self.start_node(node)
        wait_until(self._all_idle, "every node is idle")

    def restart_controller(self) -> None:
        """Kill slurmctld and start it again; jobs continue."""
        daemon = self._daemons.pop("slurmctld")
        daemon.kill()
        daemon.wait()
        self._run("slurmctld", "-D")
        wait_until(self._answers, "slurmctld answers")

    def start_node(self, node: str, *, hidden: Path | None = None) -> None:
        """Start a node's slurmd. ``hidden``: a directory that the node sees empty, as if it were not shared."""
        slurmd = [tool_path("slurmd") or "slurmd", "-D", "-N", node]
        if hidden is not None:
            mount = 'mount -t tmpfs none "$0" && exec "$@"'
            slurmd = ["unshare", "--mount", "sh", "-c", mount, str(hidden), *slurmd]
        self._run(*slurmd, name=node)

    def restart_node(self, node: str, *, hidden: Path | None = None) -> None:
        """Restart a node's slurmd, and wait until the node takes jobs. One may take it at once."""
        if node in self._daemons:
            self.stop_node(node)
        self.start_node(node, hidden=hidden)
        self.command("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        wait_until(lambda: self._takes_jobs(node), f"{node} takes jobs")

    def stop_node(self, node: str) -> None:
        """End a node's slurmd."""
        daemon = self._daemons.pop(node)
        daemon.terminate()
        daemon.wait(START_S)

    def kill_node(self, node: str) -> None:
        """Kill a node's slurmd and everything that runs below it, as when the machine loses power."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()
        steps = self.steps_of(node)
        assert steps, f"no job runs on {node}"
        for pid in steps:
            kill_tree(pid)

    def stop(self) -> None:
        """End every daemon and every step."""
        self.command("scancel", "--signal=KILL", "--state=RUNNING", check=False)
        self.command("scancel", "--state=PENDING", check=False)
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not self.command("squeue", "--noheader", check=False).strip(), "the queue is empty")
        for daemon in reversed(list(self._daemons.values())):
            daemon.terminate()
        for daemon in self._daemons.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()
            daemon.wait()
        for node in self.nodes:
            for pid in self.steps_of(node):
                kill_tree(pid)

    def command(self, tool: str, *arguments: str, check: bool = True) -> str:
        """The output of a command of Slurm."""
        argv = [tool_path(tool) or tool, *arguments]
        env = {**os.environ, **self.environment}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=START_S, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
        return done.stdout

    def jobs(self) -> list[str]:
        """``id state`` of every job that is queued or runs."""
        return self.command("squeue", "--all", "--noheader", "--format=%i %T").splitlines()

    def steps_of(self, node: str) -> list[int]:
        """The processes that supervise the node's steps. They write to the log of its slurmd."""
        steps = [pid for pid, text in command_lines() if text.startswith("slurmstepd")]
        return [pid for pid in steps if f"{self.work}/slurmd-{node}.log" in open_files(pid)]

    def _answers(self) -> bool:
        return "is UP" in self.command("scontrol", "ping", check=False)

    def _takes_jobs(self, node: str) -> bool:
        shown = self.command("sinfo", "--noheader", f"--nodes={node}", "--partition=main", "--format=%T", check=False)
        return shown.strip() in UP

    def _all_idle(self) -> bool:
        shown = self.command("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T", check=False).split()
        return shown == ["idle"] * len(self.nodes)

    def _run(self, tool: str, *arguments: str, name: str | None = None) -> None:
        argv = [tool_path(tool) or tool, *arguments]
        with (self.work / f"{name or tool}.out").open("ab") as output:
            self._daemons[name or tool] = subprocess.Popen(
                argv,
                env={**os.environ, **self.environment},
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def _write_config(self) -> None:
        for index in range(NODE_GPUS):
            device = self.work / f"gpu{index}"
            if not device.exists():
                os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))
        names, ports = f"n[1-{len(self.nodes)}]", free_ports(len(self.nodes) + 1)
        (self.work / "gres.conf").write_text(f"NodeName={names} Name=gpu File={self.work}/gpu[0-{NODE_GPUS - 1}]\n")
        host = socket.gethostname().split(".")[0]
        nodes = zip(self.nodes, ports[1:], strict=True)
        text = CONFIG.format(
            host=host,
            work=self.work,
            nodes=names,
            last=self.nodes[-1],
            port=ports[0],
            node_lines="\n".join(
                NODE.format(name=name, host=host, port=port, cpus=NODE_CPUS, gpus=NODE_GPUS) for name, port in nodes
            ),
            kill_wait_s=self._kill_wait_s,
            node_timeout_s=self._node_timeout_s,
        )
        (self.work / "slurm.conf").write_text(text)


@contextlib.contextmanager
def slurm_cluster(work: Path, *, nodes: int = 3, **settings: int) -> Iterator[SlurmCluster]:
    """A cluster for the time of the context."""
    cluster = SlurmCluster(work, nodes=nodes, **settings)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition; ``TimeoutError`` names it."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {WAIT_S:g} s until {what}")
        time.sleep(0.1)


def command_lines() -> list[tuple[int, str]]:
    """Process id and command line of every process."""
    found: list[tuple[int, str]] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found.append((int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
    return found


def open_files(pid: int) -> str:
    """The files that a process has open, one per line."""
    links: Sequence[Path] = []
    with contextlib.suppress(OSError):
        links = list(Path(f"/proc/{pid}/fd").iterdir())
    names: list[str] = []
    for link in links:
        with contextlib.suppress(OSError):
            names.append(os.readlink(link))
    return "\n".join(names)


def kill_tree(root: int) -> None:
    """Kill a process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    tree = [root]
    for pid in tree:
        tree.extend(children.get(pid, []))
    for pid in tree:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
