"""The experiments of a cluster for the page of ``grpo ui``, from their statuses."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import yaml

from areal_api import conditions, stat_names
from areal_api.experiment import KIND
from areal_api.status import ExperimentStatus
from areal_launcher.cluster.checks import check_api
from areal_launcher.cluster.client import ApiError, Cluster, ClusterTarget, Object
from areal_launcher.cluster.fetched_samples import FetchedSamples
from areal_launcher.cluster.follow import status_of
from areal_launcher.cluster.status import run_status
from areal_launcher.errors import RunError
from areal_launcher.run_files import Line
from areal_launcher.run_state import clipped
from areal_launcher.ui.charts import charts_of
from areal_launcher.ui.source import Folder
from areal_launcher.ui.table import ColumnTable
from areal_launcher.ui.view import figures

logger = logging.getLogger(__name__)
LIST_S = 2.0  # between two lists of the experiments, however many pages are open
MAX_EVENTS = 200
MAX_SPEC_BYTES = 256 * 1024


class ClusterExperiment:
    """An experiment. Its series begin when it was first seen, because the status has the newest step only, until
    ``load`` reads all of them."""

    def __init__(self, body: Object, runs: ClusterRuns) -> None:
        metadata = body["metadata"]
        self.identifier = identifier_of(body)
        self.table = ColumnTable()
        self.changed: float | None = None  # when the last step was seen
        self._line: Line | None = None  # of the newest status
        self.namespace = str(metadata.get("namespace"))
        self._name = f"{self.namespace}/{metadata['name']}"
        self._runs = runs
        self._body = body
        self._problems: dict[str, str] = {}  # by condition: what was last reported
        self._events: list[dict[str, Any]] = []
        self._loaded = False
        self.put(body)

    def put(self, body: Object) -> None:
        """Take what is new from the object."""
        self._body = body
        status = status_of(body)
        if status.step and status.step != self.table.last_step:
            self.changed = None if not len(self.table) else time.time()
            self._line = _line(status)
            self.table.add(self._line)
        for condition in status.conditions[:MAX_EVENTS]:
            harmless = condition.status == "True" or condition.reason in conditions.BENIGN
            text = "" if harmless else f"{condition.type}: {condition.message or condition.reason}"
            if text and self._problems.get(condition.type) != text:
                self._events.append({"step": status.step or 0, "kind": "warning", "text": clipped(text)})
            self._problems[condition.type] = text
        del self._events[:-MAX_EVENTS]

    def poll(self) -> bool:
        """List the experiments again if that was long ago."""
        self._runs.refresh()
        return False

    def row(self) -> dict[str, Any]:
        """The line of the list."""
        shown = run_status(self._body, ())
        return {
            "id": self.identifier,
            "name": self._name,
            "state": shown.state,
            "reason": clipped(shown.message),
            "step": shown.step,
            "total": shown.total_steps,
            "reward": shown.reward,
            "changed": self.changed,
        }

    def overview(self) -> dict[str, Any]:
        """The experiment without its series."""
        row, status = self.row(), status_of(self._body)
        problems = (self._runs.problem(self.namespace), *self._problems.values())
        servers = [("servers", float(status.servers.ready)), ("restarts", float(status.restarts))]
        return {
            **row,
            "path": self._name,
            "problems": [clipped(text) for text in problems if text],
            "step": max(status.step or 0, self.table.last_step),
            "figures": [*figures(self.table), *({"label": label, "value": value} for label, value in servers)],
            "charts": [asdict(chart) for chart in charts_of(self.table.statistics)],
            "statistics": self.table.statistics,
            "servers": [],
            "files": self._runs.files is not None,
            "more": self._runs.files is not None and not self._loaded,
            "events": list(self._events),
            "changes": self.table.changes,
        }

    @property
    def directory(self) -> Path | None:
        """Where ``fetch`` puts files."""
        files = self._runs.files
        return None if files is None else files.directory(self.identifier)

    def steps(self, folder: Folder) -> list[int]:
        """The steps with a file of samples on the run's volume. Raises ``RunError`` if it cannot be read."""
        files = self._runs.files
        return [] if files is None else files.steps(self.identifier, self._body, folder)

    def fetch(self, folder: Folder, *steps: int) -> None:
        """Fetch files of samples from the run's volume. Raises ``FileNotFoundError`` and ``RunError``."""
        files = self._runs.files
        if files is not None:
            files.fetch(self.identifier, self._body, folder, steps)

    def load(self) -> None:
        """Replace the series by those on the run's volume. Raises ``RunError`` if they cannot be read."""
        if self._runs.files is None or self._loaded:
            return
        lines = self._runs.files.statistics(self._body)
        newest = self._line
        self.table.clear()
        for line in lines:
            self.table.add(line)
        if newest is not None and newest["step"] > self.table.last_step:
            self.table.add(newest)
        self._loaded = True

    def configuration(self) -> str:
        """The spec."""
        return yaml.safe_dump(self._body.get("spec") or {}, sort_keys=False, allow_unicode=True)[:MAX_SPEC_BYTES]


class ClusterRuns:
    """The experiments of some namespaces, or of all if there are none in ``namespaces``."""

    def __init__(self, cluster: Cluster, namespaces: Sequence[str]) -> None:
        self._cluster = cluster
        self._namespaces: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._experiments: dict[str, ClusterExperiment] = {}
        self._lock = threading.Lock()
        self._listed_at = float("-inf")
        self.files: FetchedSamples | None = None  # None: samples are not shown
        self._failed: dict[str | None, str] = {}  # by listed namespace: why its last list failed

    @classmethod
    def of(cls, cluster: Cluster, namespaces: Sequence[str]) -> Self:
        """The experiments, listed once. Raises ``RunError`` if they cannot be listed."""
        check_api(cluster)
        runs = cls(cluster, namespaces)
        for namespace in runs._namespaces:
            runs._list(namespace)
        return runs

    @classmethod
    def connect(cls, target: ClusterTarget) -> Self:
        """Connect, and list the target's namespace, or all; the context's if the list of all is not allowed.

        Samples are fetched with the target's permissions. Raises ``ValueError`` or ``RunError`` if the experiments
        cannot be listed.
        """
        cluster = Cluster.connect(target)
        try:
            runs = cls.of(cluster, [] if target.namespace is None else [target.namespace])
        except ApiError as error:
            if error.code != 403 or target.namespace is not None:
                raise
            runs = cls.of(cluster, [cluster.namespace])
        runs.files = FetchedSamples(cluster)
        return runs

    def rows(self, may_see: Callable[[str], bool] = lambda _: True) -> list[dict[str, Any]]:
        """A line for each experiment in the namespaces that ``may_see`` admits, the latest first."""
        self.refresh()
        found = [one.row() for one in list(self._experiments.values()) if may_see(one.namespace)]
        return sorted(found, key=lambda row: (-(row["changed"] or 0.0), row["name"]))

    def find(self, identifier: str) -> ClusterExperiment | None:
        """The experiment, if the last list had it."""
        return self._experiments.get(identifier)

    @property
    def listed(self) -> bool:
        """Whether the last list of each namespace succeeded, and there was one."""
        return self._listed_at > float("-inf") and not self._failed

    def namespaces(self) -> set[str]:
        """The namespaces in which there are experiments."""
        return {experiment.namespace for experiment in list(self._experiments.values())}

    def seen_by(self, may_see: Callable[[str], bool]) -> SeenRuns:
        """The experiments in the namespaces that a visitor may see."""
        return SeenRuns(self, may_see)

    def problem(self, namespace: str) -> str:
        """Why what is shown of a namespace may be old; empty if it is not."""
        found = self._failed.get(namespace) or self._failed.get(None)
        return f"what is shown may be old: {found}" if found else ""

    def refresh(self) -> None:
        """List the experiments, at most once per ``LIST_S``; a failure is kept as the ``problem``."""
        with self._lock:
            if time.monotonic() - self._listed_at < LIST_S:
                return
            for namespace in self._namespaces:
                try:
                    self._list(namespace)
                except RunError as error:
                    if namespace not in self._failed:
                        logger.warning("the experiments of %s cannot be listed: %s", namespace or "the cluster", error)
                    self._failed[namespace] = str(error)
                else:
                    self._failed.pop(namespace, None)
            self._listed_at = time.monotonic()

    def _list(self, namespace: str | None) -> None:
        experiments = {
            key: experiment
            for key, experiment in self._experiments.items()
            if namespace is not None and experiment.namespace != namespace
        }
        for body in self._cluster.list(KIND, namespace):
            identifier = identifier_of(body)
            known = self._experiments.get(identifier)
            if known is not None:
                known.put(body)
            experiments[identifier] = known or ClusterExperiment(body, self)
        self._experiments = experiments


class SeenRuns:
    """The experiments that a visitor may see. What another may see is not found here, like what does not exist."""

    def __init__(self, runs: ClusterRuns, may_see: Callable[[str], bool]) -> None:
        self._runs = runs
        self._may_see = may_see

    def rows(self) -> list[dict[str, Any]]:
        """A line for each experiment, the latest first."""
        return self._runs.rows(self._may_see)

    def find(self, identifier: str) -> ClusterExperiment | None:
        """The experiment, if the visitor may see it."""
        found = self._runs.find(identifier)
        return found if found is not None and self._may_see(found.namespace) else None


def identifier_of(body: Object) -> str:
    """Identifies an experiment; another one of the same name has another."""
    return hashlib.sha256(str(body["metadata"].get("uid")).encode()).hexdigest()[:16]


def _line(status: ExperimentStatus) -> Line:
    reported = {
        stat_names.TOTAL_STEPS: status.total_steps,
        stat_names.TASK_REWARD: status.reward,
        stat_names.EVAL_REWARD: status.eval_reward,
        stat_names.STALENESS: status.staleness,
        stat_names.TOKENS_PER_SECOND: status.tokens_per_second,
        stat_names.SERVERS_CURRENT: status.servers_current,
        stat_names.SERVERS_BEHIND: status.servers_behind,
        stat_names.CACHE_HIT_RATE: status.cache_hit_rate,
        stat_names.ROLLOUT_WAIT: status.rollout_wait,
        stat_names.SERVERS_IDLE: status.servers_idle,
    }
    assert status.step is not None
    return {"step": status.step, **{name: float(value) for name, value in reported.items() if value is not None}}
