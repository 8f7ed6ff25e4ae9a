"""A Ray cluster as a place: each process has a bundle of resources and an actor there that starts and watches it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from areal_launcher.core.place import ProcessSpec, kill_all
from areal_launcher.core.processes import last_lines
from areal_launcher.core.supervisor import CANNOT_START
from areal_launcher.errors import RunError
from areal_launcher.places.ray import node_code
from areal_launcher.places.ray.agent import NodeError, Requirements, Started
from areal_launcher.places.ray.bundles import Bundle, shortage, unplaced
from areal_launcher.places.ray.connection import alive_nodes
from areal_launcher.places.ray.gang import Gang, is_done

LOST = 137  # exit status of a process whose node or actor is gone: it was killed
STOPPED = 143
ATTEMPTS = 20  # to start a process on an agent that ends before it could
RETRY_S = 3.0
POLL_S = 0.1
CHECK_TIMEOUT_S = 300.0  # for the first actors to start on idle nodes, which load Python from a shared file system
# Variables of the user's shell that the processes get besides those of their node.
FORWARDED = ("AREAL_", "GLOO_", "HF_", "MLFLOW_", "NCCL_", "SGLANG_", "SWANLAB_", "TORCH_", "TRACKIO_", "WANDB_")


@dataclass(frozen=True)
class Attempt:
    """An agent that was asked to start a process, and its answers to come."""

    agent: Any
    started: Any
    ended: Any
    problem: Callable[[], str | None]  # of the code on its node


class RayProcess:
    """A process on some node, or one that waits for a node."""

    def __init__(
        self,
        spec: ProcessSpec,
        attempt: Attempt,
        *,
        again: Callable[[ProcessSpec], Attempt],
        notify: Callable[[str], None],
        ended: Callable[[RayProcess], None],
    ) -> None:
        """``again`` asks a new agent to start it; ``ended`` is called once, when the process has ended."""
        self.spec = spec
        self.terminated = False
        self.lost = False  # whether its agent has ended
        self._attempt = attempt
        self._again = again
        self._notify = notify
        self._on_end = ended
        self._attempts = 1
        self._next_attempt: float | None = None  # when to ask a new agent
        self._started: Started | None = None
        self._since = 0.0
        self._status: int | None = None
        self._problem = ""
        self._reported = False

    @property
    def address(self) -> str | None:
        """``host:port``; None while it waits for a node, or if it needs no port."""
        self.poll()
        return None if self._started is None else self._started.address

    @property
    def seconds(self) -> float:
        """Seconds since it runs; 0 while it waits for a node."""
        return 0.0 if self._started is None else time.monotonic() - self._since

    def poll(self) -> int | None:
        """Exit status, 128 + n for signal n; None while it waits or runs."""
        if self._status is None and self._next_attempt is not None and time.monotonic() >= self._next_attempt:
            self._next_attempt, self._attempts = None, self._attempts + 1
            self._attempt = self._again(self.spec)
        waits = self._next_attempt is not None
        if self._status is None and self._started is None and not waits and is_done(self._attempt.started, 0.0):
            with self._failures():
                self._started = ray.get(self._attempt.started)
                self._since = time.monotonic()
        if self._status is None and self._started is not None and is_done(self._attempt.ended, 0.0):
            with self._failures():
                self._status = int(ray.get(self._attempt.ended))
        if self._status is not None and not self._reported:
            self._reported = True
            self._on_end(self)
        return self._status

    def terminate(self) -> None:
        """Send SIGTERM to the command."""
        self.terminated = True
        self._stop(self._attempt.agent.terminate, STOPPED)

    def kill(self) -> None:
        """Begin to kill the command and its descendants."""
        self._stop(self._attempt.agent.kill, LOST)

    def wait(self, timeout_s: float) -> int | None:
        """Wait; the exit status, or None if it still runs."""
        deadline = time.monotonic() + timeout_s
        while (status := self.poll()) is None and (left := deadline - time.monotonic()) > 0:
            ray.wait([self._attempt.ended], timeout=min(left, RETRY_S))
            if self._next_attempt is not None:
                time.sleep(min(left, POLL_S))
        return status

    def tail(self, lines: int = 20) -> list[str]:
        """The last lines that were logged since this start, or why it did not start."""
        self.poll()
        if self._problem:
            return [self._problem]
        return [] if self._started is None else last_lines(self.spec.log, self._started.log_start, lines)

    def _stop(self, call: Any, status_if_waiting: int) -> None:
        if self.poll() is not None:
            return
        if self._started is None:  # it has no node yet: there is nothing to end but its actor
            self._end(status_if_waiting)
        else:
            call.remote()

    @contextlib.contextmanager
    def _failures(self) -> Any:
        """Turn a failure of the actor or its node into the end of the process."""
        try:
            yield
        except NodeError as error:
            self._problem = text_of(error)
            self._notify(f"{self.spec.name} cannot start: {self._problem}")
            self._status = CANNOT_START
        except RayTaskError as error:
            self._problem = str(error)
            self._end(CANNOT_START)
        except RayError as error:
            if self._started is None and (problem := self._attempt.problem()) is not None:
                self._problem = problem
                self._notify(f"{self.spec.name} cannot start: {problem}")
                self._end(CANNOT_START)
                return
            if self._started is None and self._attempts < ATTEMPTS:
                # Its bundle was on a node that is dead, or Ray has not noticed yet that it is.
                self._next_attempt = time.monotonic() + RETRY_S
                ray.kill(self._attempt.agent)
                return
            self._problem = "" if self._started else f"its Ray actor has ended: {first_line(error)}"
            self._notify(f"{self.spec.name} was lost with its node or its Ray actor")
            self._end(LOST)

    def _end(self, status: int) -> None:
        self._status, self.lost = status, True
        ray.kill(self._attempt.agent)


class RayPlace:
    """The connected cluster, with the resources of one run."""

    def __init__(
        self,
        bundles: Sequence[Bundle],
        *,
        later: Sequence[Bundle] = (),
        run: Path,
        paths: Sequence[str],
        wait_s: float | None = None,
        first_port: int | None = None,
        notify: Callable[[str], None],
        on_wait: Callable[[str], None] | None = None,
    ) -> None:
        """Reserve the bundles and check their nodes, before any process starts.

        ``later``: bundles of servers that may be added. ``paths``: local files that the processes read. ``wait_s``: how
        long to wait for room, of which ``on_wait`` is told (default: ``notify``). Raises ``RunError`` if there is none,
        ``ValueError`` if a node cannot run the processes.
        """
        self._run = run
        self._later = {bundle.name: bundle for bundle in later}
        self._paths = list(paths)
        self._first_port = first_port
        self.notify = notify
        self._processes: dict[str, RayProcess] = {}
        self._agents: dict[str, Any] = {}
        self._generations: dict[str, int] = {}
        self._closed = False
        for left in run.glob(".probe-*"):  # by a driver that was killed
            left.unlink(missing_ok=True)
        self._probe = run / f".probe-{os.getpid()}-{time.time_ns()}"
        self._probe.touch()
        self._code = node_code.describe()
        self._codes: dict[str, Any] = {}  # of the node on which an agent is to start
        self._gang: Gang | None = None
        try:
            self._gang = Gang(bundles, wait_s=wait_s, on_wait=on_wait or notify)
            self._check_nodes()
        except BaseException:
            self.close()
            raise

    def start(self, spec: ProcessSpec) -> RayProcess:
        """Start a process in its bundle, on the actor that is there, or on a new one if that was lost."""
        assert self._gang is not None
        if spec.name not in self._gang.slots:
            self._add(self._later[spec.name])
        previous = self._processes.get(spec.name)
        if previous is not None and previous.lost:
            del self._agents[spec.name]
        process = RayProcess(spec, self._ask(spec), again=self._ask_again, notify=self.notify, ended=self._ended)
        self._processes[spec.name] = process
        return process

    def ending(self) -> str | None:
        """None: Ray takes away nodes, one by one, and what ran there moves."""
        return None

    def close(self) -> None:
        """Kill everything, give back the resources and disconnect."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(RayError):
            kill_all(list(self._processes.values()))
        for agent in self._agents.values():
            with contextlib.suppress(RayError):
                ray.kill(agent)
        if self._gang is not None:
            with contextlib.suppress(RayError):
                self._gang.release()
        self._probe.unlink(missing_ok=True)
        ray.shutdown()

    def _add(self, bundle: Bundle) -> None:
        """Reserve the bundle of a server that is added; a message says if the cluster has no room for it now."""
        assert self._gang is not None
        nodes = alive_nodes()
        if unplaced([bundle], nodes, empty=False):
            self.notify(f"{bundle.name} waits for room: {shortage([bundle], nodes)}")
        self._gang.add(bundle)

    def _ask(self, spec: ProcessSpec) -> Attempt:
        """Ask the agent of the process's bundle to start it, a new one if there is none."""
        assert self._gang is not None
        if spec.name not in self._agents:
            self._codes[spec.name] = self._gang.slots[spec.name].code()
            self._agents[spec.name] = self._gang.slots[spec.name].new_agent()
        agent = self._agents[spec.name]
        generation = self._generations[spec.name] = self._generations.get(spec.name, 0) + 1
        complete = replace(spec, env={**forwarded(os.environ), **spec.env})
        requirements = self._requirements(spec.name)
        started = agent.start.remote(generation, complete, requirements, self._first_port)
        problem = partial(self._code_problem, spec.name, self._codes[spec.name])
        return Attempt(agent, started, agent.wait.remote(generation), problem)

    def _ask_again(self, spec: ProcessSpec) -> Attempt:
        self._agents.pop(spec.name, None)
        return self._ask(spec)

    def _ended(self, process: RayProcess) -> None:
        """Give back the bundle of a server that was added and has ended because it is no longer wanted."""
        name = process.spec.name
        if self._gang is not None and process.terminated and name in self._later and self._processes[name] is process:
            ray.kill(self._agents.pop(name))
            self._gang.drop(name)

    def _check_nodes(self) -> None:
        """Raise ``ValueError`` with the first problem of a node. The actors stay for the processes."""
        assert self._gang is not None
        of_nodes: dict[str, Any] = {}
        for name, slot in self._gang.slots.items():
            if (node := slot.node) not in of_nodes:
                of_nodes[node] = slot.code()
            self._codes[name] = of_nodes[node]
        try:
            ray.get(list(of_nodes.values()), timeout=CHECK_TIMEOUT_S)
            for name, code in self._codes.items():
                if (problem := self._code_problem(name, code)) is not None:
                    raise ValueError(problem)
            self._agents = {name: slot.new_agent() for name, slot in self._gang.slots.items()}
            checks = [agent.check.remote(self._requirements(name)) for name, agent in self._agents.items()]
            ray.get(checks, timeout=CHECK_TIMEOUT_S)
        except NodeError as error:
            raise ValueError(text_of(error)) from error
        except ray.exceptions.GetTimeoutError as error:
            raise RunError(f"no answer from all nodes within {CHECK_TIMEOUT_S:g} s; see `ray status`") from error
        except RayError as error:
            raise RunError(f"a node cannot run the launcher's actor: {first_line(error)}") from error

    def _requirements(self, name: str) -> Requirements:
        return Requirements(self._run, self._probe.name, Path.cwd(), self._paths, package_of(name), self._code)

    def _code_problem(self, name: str, code: Any) -> str | None:
        """What is wrong with the code on a node, if that is known."""
        with contextlib.suppress(RayError):
            if is_done(code, 0.0):
                return node_code.problem(self._code, ray.get(code), package_of(name))
        return None


def package_of(name: str) -> str:
    """The package that a process runs."""
    return "areal_server" if name.startswith("server") else "areal_trainer"


def text_of(error: NodeError) -> str:
    """The text of an error that an actor raised; Ray's copy of the error has a traceback in its place."""
    return str(getattr(error, "cause", error))


def first_line(error: Exception) -> str:
    """The first line of an error, with which Ray begins its explanation."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def forwarded(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of the user's shell that every process gets."""
    return {name: value for name, value in environ.items() if name.startswith(FORWARDED)}
