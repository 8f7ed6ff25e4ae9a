"""The allocation of a Slurm job as a place: each process is a separate step, started with srun."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from areal_api.slurm import SlurmSpec
from areal_launcher.core import on_node, supervisor
from areal_launcher.core.environment import child_environment
from areal_launcher.core.place import ProcessSpec, kill_all
from areal_launcher.core.processes import SupervisedProcess
from areal_launcher.errors import RunError
from areal_launcher.places.slurm import commands
from areal_launcher.places.slurm.job import job_dir
from areal_launcher.places.slurm.layout import Layout
from areal_launcher.run_files import write_atomic

CONTAINER_PYTHON = "python3"
FIRST_STEP_S = 600.0  # with the prolog of each node
STEP_GONE_S = 60.0
ASK_AGAIN_S = 2.0
NODE_GONE_S = 20.0  # a slurmd that restarts is back by then, and a server has not used up its restarts
SRUN_EXIT_S = 10.0


class Node:
    """A node of the allocation: its component of the job, its address, and its GPUs that no process has."""

    def __init__(self, name: str, component: int, address: str, gpus: int) -> None:
        self.name = name
        self.component = component
        self.address = address
        self.free_gpus = list(range(gpus))
        self.processes = 0


class Step(SupervisedProcess):
    """A process on a node. srun carries its standard input, so that it ends if srun or this process does."""

    def __init__(
        self, spec: ProcessSpec, srun: Sequence[str], *, env: Mapping[str, str], address_file: Path | None
    ) -> None:
        self.spec = spec
        self._address_file = address_file
        self._address: str | None = None
        self.killed = False
        self.explained = False  # whether it is known why it has ended
        super().__init__([], env=env, log=spec.log, supervisor=srun)

    @property
    def address(self) -> str | None:
        """``host:port`` as the node has published it."""
        if self._address is None and self._address_file is not None:
            with contextlib.suppress(FileNotFoundError):
                self._address = self._address_file.read_text(encoding="utf-8").strip() or None
        return self._address

    def kill(self) -> None:
        """Kill the command and its descendants, if the node answers."""
        self.killed = True
        super().kill()

    def kill_srun(self) -> None:
        """Kill srun itself, if its node does not answer."""
        self._process.kill()
        self._process.wait(SRUN_EXIT_S)


class SlurmPlace:
    """The allocation of the job that this process runs in."""

    def __init__(
        self, run: Path, options: SlurmSpec, components: Sequence[Layout], *, environ: Mapping[str, str]
    ) -> None:
        self._files = job_dir(run)
        self._run = run
        self._options = options
        self._environ = environ
        self._job = environ["SLURM_JOB_ID"]
        self._heterogeneous = len(components) > 1
        # Each component of a heterogeneous job is a job with its steps.
        groups = [environ.get(f"SLURM_JOB_ID_HET_GROUP_{index}", self._job) for index in range(len(components))]
        self._jobs = ",".join(dict.fromkeys(groups))
        self.nodes = allocated_nodes(components, environ)
        self._layouts = list(components)
        self._node_of: dict[str, Node] = {}
        self._gpus: dict[str, list[int]] = {}
        self._ports: dict[str, int] = {}
        self._steps: dict[str, Step] = {}
        self._ending: str | None = None
        self._tools = self._copy_tools()
        first = 0
        for layout in components:
            for kind, indices in (("server", layout.servers), ("trainer", layout.trainer)):
                for index, node in enumerate(indices):
                    self._node_of[name_of(kind, index)] = self.nodes[first + node]
            first += layout.nodes
        self._server_nodes = self.nodes[-components[-1].nodes :]

    def check_shared(self, content: str, file: Path) -> None:
        """Raise ``RunError`` if some node does not see ``file`` with ``content``."""
        script = '[ "$(cat "$0" 2>/dev/null)" = "$1" ] || echo "$SLURMD_NODENAME"'
        blind: list[str] = []
        for nodes, argv in self._on_every_node():
            try:
                step = [*argv, "sh", "-c", script, str(file), content]
                blind += commands.run(*step, timeout_s=FIRST_STEP_S).split()
            except commands.SlurmError as error:
                raise RunError(f"cannot start a step on {', '.join(nodes)}: {error}") from error
        if blind:
            raise RunError(
                f"cluster.fileroot: {self._run} is not shared: {', '.join(sorted(blind))} cannot see a file that the "
                "submit host wrote there; set cluster.fileroot to a directory that all nodes share"
            )

    def start(self, spec: ProcessSpec) -> Step:
        """Start a step on the node of the process; a server beyond the layout gets the node with the most room."""
        before = self._steps.get(spec.name)
        if before is not None:
            if before.address is not None:
                self._ports[spec.name] = int(before.address.rpartition(":")[2])
            if before.supervisor_killed:
                self._end_step(spec.name)
        node = self._node(spec)
        address_file = self._files / f"{spec.name}.address"
        address_file.unlink(missing_ok=True)
        port = self._ports.get(spec.name, 0) if spec.needs_port else None
        write_private(
            self._files / f"{spec.name}.json",
            json.dumps(
                {
                    "argv": list(spec.argv),
                    "env": dict(spec.env),
                    "host": node.address,
                    "port": port,
                    "address_file": str(address_file),
                    "gpus": self._gpus.get(spec.name) if spec.gpus else None,
                }
            ),
        )
        step = Step(
            spec,
            self._step_command(spec, node),
            env=child_environment(self._environ, {}, nodes=sorted({one.address for one in self.nodes})),
            address_file=address_file if spec.needs_port else None,
        )
        self._steps[spec.name] = step
        return step

    def ending(self) -> str | None:
        """That the job is preempted or has lost a node. Takes a second, or half a minute if a node does not answer.

        Slurm signals the steps of a preempted job but not this process, and notices a lost node after minutes only
        (SlurmdTimeout). So both are asked once for each step that has ended or had to be killed.
        """
        steps = [step for step in self._steps.values() if not step.explained]
        unexplained = [step for step in steps if step.killed or step.poll() is not None]
        if unexplained and self._ending is None:
            for step in unexplained:
                step.explained = True
            self._ending = self._why_ending()
        return self._ending

    def _why_ending(self) -> str | None:
        deadline = time.monotonic() + NODE_GONE_S
        while True:
            try:
                if commands.is_preempted(self._job):
                    return f"job {self._job} is preempted"
                job = commands.find_job(self._job)
            except commands.SlurmError:  # slurmctld restarts, for example
                job, unreached = None, None
            else:
                if job is None or job.state != "RUNNING":
                    return None  # Slurm ends the job and signals this process
                unreached = self._unreached()
                if unreached is None:
                    return None
            if time.monotonic() > deadline:
                return None if unreached is None else f"job {self._job} has lost a node ({unreached})"
            time.sleep(ASK_AGAIN_S)

    def _unreached(self) -> str | None:
        """Why some node starts no step; None if all do."""
        try:
            for _, argv in self._on_every_node():
                commands.run(*argv, "true")
        except commands.SlurmError as error:
            return str(error)
        return None

    def close(self) -> None:
        """Kill every step and wait."""
        steps = list(self._steps.values())
        kill_all([step for step in steps if not step.killed])  # the others have had their time
        for step in steps:
            if step.poll() is None:
                step.kill_srun()
        for file in self._files.glob("*.json"):
            if file.stem in self._steps:
                file.unlink(missing_ok=True)

    def _node(self, spec: ProcessSpec) -> Node:
        node = self._node_of.get(spec.name)
        if node is None:
            node = max(self._server_nodes, key=lambda one: (len(one.free_gpus), -one.processes))
        if spec.name not in self._gpus:
            if len(node.free_gpus) < spec.gpus:
                raise RunError(f"{spec.name} needs {spec.gpus} GPUs, no node of job {self._job} has as many left")
            self._gpus[spec.name] = [node.free_gpus.pop(0) for _ in range(spec.gpus)]
            node.processes += 1
        self._node_of[spec.name] = node
        return node

    def _srun(self, component: int) -> list[str]:
        layout = self._layouts[component]
        srun = ["srun", f"--jobid={self._job}", "--overlap", "--cpu-bind=none", "--export=ALL", "--kill-on-bad-exit=0"]
        # Every step may use all of the job's CPUs and memory on its node. srun would give it one CPU, and since 22.05
        # does not take over the number that was given to sbatch.
        srun += [f"--cpus-per-task={layout.cpus_per_node}", "--mem=0", "--mpi=none"]
        return [*srun, f"--het-group={component}"] if self._heterogeneous else srun

    def _on_every_node(self) -> list[tuple[list[str], list[str]]]:
        """The nodes of each component of the job, and the beginning of a command that runs once on each of them."""
        found: list[tuple[list[str], list[str]]] = []
        for component in sorted({node.component for node in self.nodes}):
            nodes = [node.name for node in self.nodes if node.component == component]
            argv = [*self._srun(component), f"--nodes={len(nodes)}", "--ntasks-per-node=1", "--chdir=/"]
            found.append((nodes, argv))
        return found

    def _step_command(self, spec: ProcessSpec, node: Node) -> list[str]:
        srun = [*self._srun(node.component), "--nodes=1", "--ntasks=1", f"--nodelist={node.name}"]
        srun.append(f"--job-name={spec.name}")
        # Not the command's own: that of a trainer with code begins with a shell.
        own = sys.executable if self._options.container_image is None else CONTAINER_PYTHON
        python = self._options.python or own
        inside = [python, "-I", "-S", str(self._tools / "on_node.py"), str(self._files / f"{spec.name}.json")]
        return [*srun, *contained(self._options, inside, run=self._run, gpus=spec.gpus > 0)]

    def _copy_tools(self) -> Path:
        """Copies of the files that run on nodes, at a path that exists there, also in a container."""
        directory = self._files / "tools"
        directory.mkdir(parents=True, exist_ok=True)
        for module in (on_node, supervisor):
            source = Path(str(module.__file__))
            write_atomic(directory / source.name, source.read_bytes())
        return directory

    def _end_step(self, name: str) -> None:
        """End what is left of a step whose srun was killed."""
        deadline = time.monotonic() + STEP_GONE_S
        left: list[str] = []
        while True:
            with contextlib.suppress(commands.SlurmError):  # slurmctld restarts, for example
                shown = commands.run(
                    "squeue", "--all", "--noheader", "--steps", f"--jobs={self._jobs}", "--format=%i|%j"
                )
                left = [line.split("|")[0] for line in shown.splitlines() if line.strip().endswith(f"|{name}")]
                if not left:
                    return
                commands.run("scancel", "--signal=KILL", *left)
            if time.monotonic() > deadline:
                raise RunError(f"step {', '.join(left)} of {name} did not end within {STEP_GONE_S:.0f} s")
            time.sleep(0.5)


def contained(options: SlurmSpec, argv: Sequence[str], *, run: Path, gpus: bool) -> list[str]:
    """The last arguments of srun: ``argv``, or ``argv`` in the container of ``options`` with ``run`` mounted."""
    image = options.container_image
    if image is None:
        return list(argv)
    if options.container_runtime == "pyxis":
        mounts = f"--container-mounts={run}:{run}"
        return [f"--container-image={image}", mounts, *options.container_args, *argv]
    nvidia = ["--nv"] if gpus else []
    return ["apptainer", "exec", *nvidia, f"--bind={run}", *options.container_args, image, *argv]


def name_of(kind: str, index: int) -> str:
    """The name of a process, as in ``ProcessSpec.name``."""
    return kind if kind == "trainer" and index == 0 else f"{kind}-{index}"


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read: variables may hold secrets."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def allocated_nodes(components: Sequence[Layout], environ: Mapping[str, str]) -> list[Node]:
    """The nodes of the job, component by component."""
    names: list[tuple[str, int, int]] = []
    for component, layout in enumerate(components):
        variable = f"SLURM_JOB_NODELIST_HET_GROUP_{component}" if len(components) > 1 else "SLURM_JOB_NODELIST"
        hosts = commands.host_names(environ[variable])
        names += [(host, component, layout.gpus_per_node) for host in hosts[: layout.nodes]]
    addresses = resolve(commands.node_addresses([name for name, _, _ in names]))
    return [Node(name, component, addresses[name], gpus) for name, component, gpus in names]


def resolve(addresses: Mapping[str, str]) -> dict[str, str]:
    """IP addresses of nodes. A node whose own name is loopback there gets its address towards the others."""
    found: dict[str, str] = {}
    for name, address in addresses.items():
        try:
            found[name] = str(socket.getaddrinfo(address, None, socket.AF_INET)[0][4][0])
        except OSError as error:
            raise RunError(f"node {name}: its address {address} cannot be resolved: {error.strerror}") from error
    others = [ip for ip in found.values() if not ip.startswith("127.")]
    for name, ip in found.items():
        if ip.startswith("127.") and others:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect((others[0], 9))
                found[name] = probe.getsockname()[0]
    return found
