"""Logs of an experiment's pods: the last words of one that failed, and `grpo logs --on kubernetes`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from areal_api import resource_names
from areal_api.experiment import KIND
from areal_api.status import TERMINAL_PHASES
from areal_launcher.cluster.client import ApiError, Cluster, Object, Place, Unreachable
from areal_launcher.cluster.follow import status_of
from areal_launcher.errors import RunError

TAIL_LINES = 400
FOLLOW_S = 1.0
COMPONENTS = {"trainer": resource_names.TRAINER, "servers": resource_names.SERVER}


@dataclass(frozen=True)
class Life:
    """One life of a container: a restart begins another."""

    pod: str
    uid: str
    container: str
    restarts: int
    state: str  # waiting, running, terminated

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from the others."""
        return self.uid, self.container, self.restarts


def pods_of(cluster: Cluster, namespace: str, name: str, component: str | None = None) -> list[Object]:
    """Pods of an experiment, of the trainer those of its newest attempt, by name."""
    labels = resource_names.labels(name) if component is None else resource_names.component_labels(name, component)
    pods = cluster.list("Pod", namespace, labels=resource_names.selector(labels))
    attempts = [int(pod["metadata"]["labels"].get(resource_names.ATTEMPT, 0)) for pod in pods]
    newest = max(attempts, default=0)
    current = [pod for pod, attempt in zip(pods, attempts, strict=True) if attempt in (0, newest)]
    return sorted(current, key=lambda pod: str(pod["metadata"]["name"]))


def lives_of(pod: Object) -> list[Life]:
    """The containers of a pod that have begun, or a last time ended: those that failed before it, too."""
    status, metadata = pod.get("status") or {}, pod["metadata"]
    found: list[Life] = []
    for kind in ("initContainerStatuses", "containerStatuses"):
        for one in status.get(kind) or ():
            state = next(iter(one.get("state") or {"waiting": {}}))
            failed = ((one.get("state") or {}).get("terminated") or {}).get("exitCode", 0) != 0
            if kind == "containerStatuses" or failed:
                found.append(
                    Life(metadata["name"], metadata["uid"], one["name"], int(one.get("restartCount") or 0), state)
                )
    return found


def last_words(cluster: Cluster, namespace: str, name: str, attempt: int) -> tuple[list[str], int | None]:
    """Last lines and exit status of the container of an attempt that failed; nothing where its pods are gone."""
    for pod in pods_of(cluster, namespace, name, resource_names.TRAINER):
        if pod["metadata"]["labels"].get(resource_names.ATTEMPT) != str(attempt):
            continue
        status = pod.get("status") or {}
        for one in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
            ended = (one.get("state") or {}).get("terminated") or {}
            if ended.get("exitCode"):
                metadata = pod["metadata"]
                try:
                    log = cluster.log(namespace, metadata["name"], one["name"], tailLines=str(TAIL_LINES))
                except (ApiError, Unreachable) as error:
                    return [f"its log cannot be read: {error}"], int(ended["exitCode"])
                lines = log.decode(errors="replace").splitlines()
                return [line for line in lines if line.strip()], int(ended["exitCode"])
    return [], None


def logs(name: str, place: Place, *, component: str | None, process: str | None, lines: int, follow: bool) -> int:
    """Print the last lines of the logs of an experiment's pods, and what is added to them."""
    cluster = Cluster.connect(place)
    namespace = cluster.namespace
    body = cluster.get(KIND, namespace, name)
    if body is None:
        raise ValueError(f"{name}: no such experiment in namespace {namespace}; grpo status --on kubernetes lists them")
    kind = COMPONENTS[component] if component is not None else None
    if follow:
        try:
            return Tail(cluster, namespace, name, kind, process, lines).run()
        except KeyboardInterrupt:
            return 0
    pods = pods_of(cluster, namespace, name, kind)
    if not pods:
        raise RunError(f"{name} has no pods now, phase {status_of(body).phase}: {status_of(body).message}")
    chosen = matching(pods, name, process)
    if not chosen:
        known = ", ".join(str(pod["metadata"]["name"]) for pod in pods)
        raise ValueError(f"{process}: no such pod of {name}; there are {known}")
    for pod in chosen:
        print_pod(cluster, namespace, pod, lines=lines)
    return 0


def as_on_a_terminal(line: str) -> str:
    """A line of a log as it is seen last: progress bars write over themselves."""
    return line.rstrip("\r").rpartition("\r")[2]


def matching(pods: list[Object], name: str, process: str | None) -> list[Object]:
    """The pods that ``process`` names, in full or as ``server-0`` and ``trainer``; all where it names none."""
    if process is None:
        return pods
    meant = f"{name}-{process}"
    exact = [pod for pod in pods if pod["metadata"]["name"] in (process, meant)]
    return exact or [pod for pod in pods if str(pod["metadata"]["name"]).startswith(f"{meant}-")]


def print_pod(cluster: Cluster, namespace: str, pod: Object, *, lines: int) -> None:
    """Print the logs of one pod; of a container that crashed and waits, those of the life before."""
    for life in lives_of(pod):
        if life.state == "waiting" and life.restarts == 0:
            continue
        options = {"tailLines": str(lines), "previous": "true" if life.state == "waiting" else ""}
        try:
            log = cluster.log(namespace, life.pod, life.container, **options)
        except ApiError as error:
            print(f"{life.pod} | {error}", flush=True)
            continue
        for line in log.decode(errors="replace").rstrip("\n").split("\n") if log else ():
            print(f"{life.pod} | {as_on_a_terminal(line)}", flush=True)


class Tail:
    """Follows the logs of all pods of an experiment, those that come later too, until it has ended."""

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
        """Print until the experiment has ended or is gone."""
        first = True
        while True:
            body = self._cluster.get(KIND, self._namespace, self._name)
            pods = pods_of(self._cluster, self._namespace, self._name, self._component)
            for pod in matching(pods, self._name, self._process):
                self._follow(lives_of(pod), from_start=not first)
            first = False
            ended = body is None or status_of(body).phase in TERMINAL_PHASES
            if ended and not any(thread.is_alive() for thread in self._threads.values()):
                return 0
            time.sleep(FOLLOW_S)

    def _follow(self, lives: Iterable[Life], *, from_start: bool) -> None:
        for life in lives:
            if life.state == "waiting" or life.key in self._threads:
                continue
            thread = threading.Thread(target=self._print, args=(life, from_start), daemon=True)
            self._threads[life.key] = thread
            thread.start()

    def _print(self, life: Life, from_start: bool) -> None:
        options = {} if from_start else {"tailLines": str(self._lines)}
        rest = b""
        try:
            for part in self._cluster.follow_log(self._namespace, life.pod, life.container, **options):
                *whole, rest = (rest + part).split(b"\n")
                self._say(life, whole)
        except (ApiError, Unreachable) as error:
            rest = rest or str(error).encode()
        self._say(life, [rest] if rest else [])

    def _say(self, life: Life, lines: Iterable[bytes]) -> None:
        with self._printing:
            for line in lines:
                print(f"{life.pod} | {as_on_a_terminal(line.decode(errors='replace'))}", flush=True)
