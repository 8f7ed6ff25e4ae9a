"""Logs of an experiment's pods: `grpo logs --on kubernetes`, and the last lines of a failed container."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from areal_api import resource_names
from areal_api.experiment import KIND
from areal_api.status import TERMINAL_PHASES
from areal_launcher.cluster.client import ApiError, Cluster, ClusterTarget, Object, Unreachable
from areal_launcher.cluster.follow import status_of
from areal_launcher.errors import RunError
from areal_launcher.terminal_text import printable_line

TAIL_LINES = 400
MAX_LINE_BYTES = 64 * 1024  # a longer line is printed in pieces
FOLLOW_S = 1.0
COMPONENTS = {
    "trainer": resource_names.TRAINER,
    "servers": resource_names.SERVER,
    "agents": resource_names.AGENT,
    "tools": resource_names.TOOL,
}


@dataclass(frozen=True)
class ContainerRun:
    """One run of a container; every restart is another."""

    pod: str
    uid: str
    container: str
    restarts: int
    state: str  # waiting, running, terminated

    @property
    def key(self) -> tuple[str, str, int]:
        """Unique key of this run."""
        return self.uid, self.container, self.restarts


def pods_of(cluster: Cluster, namespace: str, name: str, component: str | None = None) -> list[Object]:
    """Pods of an experiment sorted by name; of the trainer only the latest attempt's."""
    labels = resource_names.labels(name) if component is None else resource_names.component_labels(name, component)
    pods = cluster.list("Pod", namespace, labels=resource_names.selector(labels))
    attempts = [attempt_of(pod) for pod in pods]
    latest = max(attempts, default=0)
    current = [pod for pod, attempt in zip(pods, attempts, strict=True) if attempt in (0, latest)]
    return sorted(current, key=lambda pod: str(pod["metadata"]["name"]))


def attempt_of(obj: Object) -> int:
    """The attempt a Job or pod belongs to; 0 if it has no such label, or one that is not a number."""
    label = str(obj["metadata"]["labels"].get(resource_names.ATTEMPT))
    return int(label) if label.isdecimal() and len(label) < 10 else 0


def container_runs(pod: Object) -> list[ContainerRun]:
    """Current runs of a pod's containers, and of its init containers that failed."""
    status, metadata = pod.get("status") or {}, pod["metadata"]
    runs: list[ContainerRun] = []
    for kind in ("initContainerStatuses", "containerStatuses"):
        for one in status.get(kind) or ():
            state = next(iter(one.get("state") or {"waiting": {}}))
            failed = ((one.get("state") or {}).get("terminated") or {}).get("exitCode", 0) != 0
            if kind == "containerStatuses" or failed:
                restarts = int(one.get("restartCount") or 0)
                runs.append(ContainerRun(metadata["name"], metadata["uid"], one["name"], restarts, state))
    return runs


def failed_container_log(cluster: Cluster, namespace: str, name: str, attempt: int) -> tuple[list[str], int | None]:
    """Last log lines and exit status of an attempt's failed container; ([], None) if its pods are gone."""
    for pod in pods_of(cluster, namespace, name, resource_names.TRAINER):
        if attempt_of(pod) != attempt:
            continue
        status = pod.get("status") or {}
        for one in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
            ended = (one.get("state") or {}).get("terminated") or {}
            if ended.get("exitCode"):
                metadata = pod["metadata"]
                try:
                    log = cluster.log(namespace, metadata["name"], one["name"], tailLines=str(TAIL_LINES))
                except (ApiError, Unreachable) as error:
                    return [f"cannot read its log: {error}"], int(ended["exitCode"])
                lines = log.decode(errors="replace").splitlines()
                return [line for line in lines if line.strip()], int(ended["exitCode"])
    return [], None


def logs(
    name: str, target: ClusterTarget, *, component: str | None, process: str | None, lines: int, follow: bool
) -> int:
    """Print the last log lines of an experiment's pods, and with ``follow`` the lines added later."""
    cluster = Cluster.connect(target)
    namespace = cluster.namespace
    body = cluster.get(KIND, namespace, name)
    if body is None:
        raise ValueError(f"{name}: no such experiment in namespace {namespace}; grpo status --on kubernetes lists them")
    kind = COMPONENTS[component] if component is not None else None
    if follow:
        try:
            return LogFollower(cluster, namespace, name, kind, process, lines).run()
        except KeyboardInterrupt:
            return 0
    pods = pods_of(cluster, namespace, name, kind)
    if not pods:
        pods_wanted = "pods" if component is None else f"pods of component {component}"
        raise RunError(f"{name} has no {pods_wanted}; its phase is {status_of(body).phase}: {status_of(body).message}")
    selected = matching(pods, name, process)
    if not selected:
        known = ", ".join(str(pod["metadata"]["name"]) for pod in pods)
        raise ValueError(f"{process}: no such pod of {name}; give one of {known}")
    for pod in selected:
        print_pod(cluster, namespace, pod, lines=lines)
    return 0


def matching(pods: list[Object], name: str, process: str | None) -> list[Object]:
    """Pods selected by ``process``, a pod name or ``server-0`` or ``trainer``; all if None."""
    if process is None:
        return pods
    full_name = f"{name}-{process}"
    exact = [pod for pod in pods if pod["metadata"]["name"] in (process, full_name)]
    return exact or [pod for pod in pods if str(pod["metadata"]["name"]).startswith(f"{full_name}-")]


def print_pod(cluster: Cluster, namespace: str, pod: Object, *, lines: int) -> None:
    """Print the logs of one pod; for a crashed container that waits to restart, those of its previous run."""
    for run in container_runs(pod):
        if run.state == "waiting" and run.restarts == 0:
            continue
        options = {"tailLines": str(lines), "previous": "true" if run.state == "waiting" else ""}
        try:
            log = cluster.log(namespace, run.pod, run.container, **options)
        except ApiError as error:
            print(f"{run.pod} | {printable_line(str(error))}", flush=True)
            continue
        for line in log.decode(errors="replace").rstrip("\n").split("\n") if log else ():
            print(f"{run.pod} | {printable_line(line)}", flush=True)


class LogFollower:
    """Follows the logs of all pods of an experiment, including later ones, until it ends."""

    def __init__(
        self, cluster: Cluster, namespace: str, name: str, component: str | None, process: str | None, lines: int
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._component = component
        self._process = process
        self._lines = lines
        self._threads: dict[tuple[str, str, int], threading.Thread] = {}
        self._printing = threading.Lock()

    def run(self) -> int:
        """Print until the experiment ends or is deleted."""
        first = True
        while True:
            body = self._cluster.get(KIND, self._namespace, self._name)
            pods = pods_of(self._cluster, self._namespace, self._name, self._component)
            for pod in matching(pods, self._name, self._process):
                self._follow(container_runs(pod), from_start=not first)
            first = False
            ended = body is None or status_of(body).phase in TERMINAL_PHASES
            if ended and not any(thread.is_alive() for thread in self._threads.values()):
                return 0
            time.sleep(FOLLOW_S)

    def _follow(self, runs: Iterable[ContainerRun], *, from_start: bool) -> None:
        for run in runs:
            if run.state == "waiting" or run.key in self._threads:
                continue
            thread = threading.Thread(target=self._print, args=(run, from_start), daemon=True)
            self._threads[run.key] = thread
            thread.start()

    def _print(self, run: ContainerRun, from_start: bool) -> None:
        options = {} if from_start else {"tailLines": str(self._lines)}
        remainder = b""
        try:
            for chunk in self._cluster.follow_log(self._namespace, run.pod, run.container, **options):
                *complete, remainder = (remainder + chunk).split(b"\n")
                if len(remainder) > MAX_LINE_BYTES:
                    complete, remainder = [*complete, remainder], b""
                self._write(run, complete)
        except (ApiError, Unreachable) as error:
            remainder = remainder or str(error).encode()
        self._write(run, [remainder] if remainder else [])

    def _write(self, run: ContainerRun, lines: Iterable[bytes]) -> None:
        with self._printing:
            for line in lines:
                print(f"{run.pod} | {printable_line(line.decode(errors='replace'))}", flush=True)
