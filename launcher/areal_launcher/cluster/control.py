"""An experiment in a cluster as an object: its status and statistics, and changes that the operator carries out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from areal_api import names, resource_names
from areal_api.experiment import KIND
from areal_api.status import TERMINAL_PHASES
from areal_launcher.cluster.checks import check_api
from areal_launcher.cluster.client import MANAGER, ApiError, Cluster, ClusterTarget, Object
from areal_launcher.cluster.fetch_results import extract_files, read_archive, source_of
from areal_launcher.cluster.fetch_samples import fetch_steps, sizes_of
from areal_launcher.cluster.follow import status_of
from areal_launcher.cluster.logs import pods_of
from areal_launcher.cluster.status import run_status
from areal_launcher.errors import RunError
from areal_launcher.run_directory import HOW_TO_DUMP, changes, history_of, rollouts_of
from areal_launcher.run_files import Line, parse_line
from areal_launcher.run_status import RunStatus

if TYPE_CHECKING:
    import pandas as pd


class ClusterRun:
    """The experiment ``name``. Methods raise ``ValueError`` if there is none, ``RunError`` if the server refuses."""

    def __init__(self, name: str, target: ClusterTarget) -> None:
        self.name = name
        self._target = target

    def status(self) -> RunStatus:
        """What the run is doing now."""
        body = self._body()
        return run_status(body, pods_of(self._cluster, self._cluster.namespace, self.name, resource_names.SERVER))

    def follow(self, *, poll_s: float = 1.0) -> Iterator[RunStatus]:
        """The status now and whenever it has changed, until the run has ended."""
        return changes(self.status, poll_s=poll_s)

    def stop(self, *, now: bool = False) -> None:
        """Suspend the experiment: the trainer writes a recovery checkpoint, and all pods end."""
        if now:
            raise ValueError(
                "--now does not apply to --on kubernetes, where pods end within their grace period; omit it, or delete "
                f"the experiment: {self._target.kubectl} delete grpo {self.name}"
            )
        self._change(self._unfinished(), {"runPolicy": {"suspend": True}})

    def resume(self) -> None:
        """Continue a suspended experiment from its last checkpoint. Raises ``ValueError`` if it is not suspended."""
        body = self._unfinished()
        if not ((body.get("spec") or {}).get("runPolicy") or {}).get("suspend"):
            raise ValueError(f"{self.name} is not suspended; grpo status {self.name} --on kubernetes shows its state")
        self._change(body, {"runPolicy": {"suspend": False}})

    def scale(self, servers: int) -> None:
        """Change the number of servers."""
        self._change(self._unfinished(), {"servers": {"replicas": servers}})

    def history(self) -> pd.DataFrame:
        """The statistics, a row for each step. A pod that mounts the run's volume prints them, which takes seconds."""
        source = source_of(self._cluster, self._body())
        files = extract_files(read_archive(self._cluster, source))
        text = files.get(names.stats_file(Path()).name, b"")
        lines: dict[int, Line] = {}
        for line in map(parse_line, text.splitlines()):
            if line is not None:
                lines[line["step"]] = line
        return history_of(list(lines.values()))

    def rollouts(self, steps: Sequence[int] | None = None) -> pd.DataFrame:
        """The samples of ``steps``, by default of the newest one. Pods that mount the run's volume print them, which
        takes seconds.

        Raises ``ValueError`` for a step without samples, and ``RunError`` for one that does not fit into a pod's log.
        """
        source = source_of(self._cluster, self._body())
        folder = names.rollouts_dir(Path()).name
        sizes = sizes_of(self._cluster, source, folder)
        chosen = list(steps) if steps is not None else [*sizes][-1:]
        if not sizes:
            raise ValueError(f"{self.name} has no samples; {HOW_TO_DUMP}")
        with tempfile.TemporaryDirectory() as target:
            try:
                fetch_steps(self._cluster, source, folder, chosen, Path(target), sizes=sizes)
            except FileNotFoundError as error:
                raise ValueError(f"{error}; it has those of steps {min(sizes)} to {max(sizes)}") from error
            return rollouts_of(Path(target), chosen)

    @cached_property
    def _cluster(self) -> Cluster:
        cluster = Cluster.connect(self._target)
        check_api(cluster)
        return cluster

    def _body(self) -> Object:
        body = self._cluster.get(KIND, self._cluster.namespace, self.name)
        if body is None:
            raise ValueError(
                f"{self.name}: no such experiment in namespace {self._cluster.namespace}; grpo status --on kubernetes "
                "lists them"
            )
        return body

    def _unfinished(self) -> Object:
        body = self._body()
        phase = status_of(body).phase
        if phase in TERMINAL_PHASES:
            raise ValueError(f"{self.name} has already {phase}; nothing of it runs")
        return body

    def _change(self, body: Object, spec: Object) -> None:
        change(self._cluster, body, spec)


def resume_if_stopped(cluster: Cluster, body: Object) -> bool:
    """Continue an experiment that ``stop`` has suspended, and nobody else since; whether it was."""
    if not is_stopped(body):
        return False
    change(cluster, body, {"runPolicy": {"suspend": False}})
    return True


def is_stopped(body: Object) -> bool:
    """Whether the last to set ``suspend`` was ``stop``, by the managers that the API server records for each field."""
    if not ((body.get("spec") or {}).get("runPolicy") or {}).get("suspend"):
        return False
    for entry in body["metadata"].get("managedFields") or []:
        if entry.get("manager") == MANAGER and entry.get("operation") == "Update":
            policy = ((entry.get("fieldsV1") or {}).get("f:spec") or {}).get("f:runPolicy") or {}
            if "f:suspend" in policy:
                return True
    return False


def change(cluster: Cluster, body: Object, spec: Object) -> None:
    """Merge ``spec`` into the stored experiment. Raises ``RunError`` if the API server refuses."""
    name, namespace = str(body["metadata"]["name"]), str(body["metadata"]["namespace"])
    try:
        cluster.merge(KIND, namespace, name, {"spec": spec})
    except ApiError as error:
        raise RunError(f"the API server refused to change {name}: {error}") from error
