"""This machine as a place: child processes on loopback, each with ports and GPUs that it keeps over restarts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from areal_launcher.core.environment import child_environment
from areal_launcher.core.place import ProcessSpec, kill_all
from areal_launcher.core.processes import ReservedPort, SupervisedProcess, children, kill_orphans
from areal_launcher.core.supervisor import PR_SET_CHILD_SUBREAPER, prctl
from areal_launcher.errors import RunError

HOST = "127.0.0.1"


class LocalProcess(SupervisedProcess):
    """A process of this machine. If its supervisor was killed, ``poll`` first kills what the supervisor left behind."""

    def __init__(self, spec: ProcessSpec, place: LocalPlace, *, env: Mapping[str, str], port: int | None) -> None:
        self.spec = spec
        self.address = None if port is None else f"{HOST}:{port}"
        self._place = place
        self._orphans_killed = False
        argv = (spec if port is None else spec.at(HOST, port)).argv
        super().__init__(argv, env=env, log=spec.log)

    def poll(self) -> int | None:
        """Exit status, 128 + n for signal n; None while running."""
        if self.supervisor_killed and not self._orphans_killed:
            self._orphans_killed = True
            self._place.kill_orphans()
        return super().poll()


class LocalPlace:
    """This machine. ``ports`` and ``gpus`` are those of this run; servers get the GPUs first."""

    def __init__(self, *, gpus: Sequence[str] = (), first_port: int | None = None, servers: int = 0) -> None:
        """``first_port``: of the first of ``servers`` servers; None for free ports. Raises ``ValueError`` if taken."""
        self._free_gpus = list(gpus)
        self._gpus: dict[str, list[str]] = {}
        self._ports: dict[str, ReservedPort] = {}
        self._processes: list[LocalProcess] = []
        self._unrelated = children()
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            for index in range(servers):
                self._ports[f"server-{index}"] = ReservedPort(HOST, first_port + index if first_port else 0)
        except BaseException:
            self.close()
            raise

    def start(self, spec: ProcessSpec) -> LocalProcess:
        """Start a process; it listens on loopback."""
        port = self._port_of(spec.name) if spec.needs_port else None
        env = {"CUDA_VISIBLE_DEVICES": ",".join(self._gpus_of(spec)), **spec.env} if spec.gpus else spec.env
        process = LocalProcess(spec, self, env=child_environment(os.environ, env), port=port)
        self._processes = [other for other in self._processes if other.spec.name != spec.name] + [process]
        return process

    def ending(self) -> str | None:
        """None: this machine takes no process away."""
        return None

    def kill_orphans(self) -> None:
        """Kill the processes left behind by a supervisor that was itself killed."""
        kill_orphans(self._unrelated | {process.pid for process in self._processes})

    def close(self) -> None:
        """Kill everything and release the ports."""
        kill_all(self._processes)
        kill_orphans(self._unrelated)
        for port in self._ports.values():
            port.release()

    def _port_of(self, name: str) -> int:
        if name not in self._ports:
            self._ports[name] = ReservedPort(HOST)
        return self._ports[name].number

    def _gpus_of(self, spec: ProcessSpec) -> list[str]:
        if spec.name not in self._gpus:
            if spec.gpus > len(self._free_gpus):
                raise RunError(f"{spec.name} needs {spec.gpus} GPUs, {len(self._free_gpus)} are free on this machine")
            self._gpus[spec.name] = [self._free_gpus.pop(0) for _ in range(spec.gpus)]
        return self._gpus[spec.name]
