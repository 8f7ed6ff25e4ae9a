"""The experiments of a cluster for the page of ``grpo ui``, from their statuses."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from areal_api import conditions, stat_names
from areal_api.experiment import KIND
from areal_api.status import ExperimentStatus
from areal_api.yaml_text import json_as_yaml
from areal_launcher.cluster.checks import check_api
from areal_launcher.cluster.client import ApiError, Cluster, ClusterTarget, Object
from areal_launcher.cluster.follow import status_of
from areal_launcher.cluster.status import run_status
from areal_launcher.errors import RunError
from areal_launcher.run_files import Line
from areal_launcher.run_state import clipped
from areal_launcher.ui.charts import charts_of
from areal_launcher.ui.table import ColumnTable
from areal_launcher.ui.view import figures

LIST_S = 2.0  # between two lists of the experiments, however many pages are open
MAX_EVENTS = 200
MAX_SPEC_BYTES = 256 * 1024


class ClusterExperiment:
    """An experiment. Its series begin when it was first seen: the status has the newest step only."""

    directory: Path | None = None

    def __init__(self, body: Object, runs: ClusterRuns) -> None:
        metadata = body["metadata"]
        self.identifier = identifier_of(body)
        self.table = ColumnTable()
        self.changed: float | None = None  # when the last step was seen
        self._name = f"{metadata.get('namespace')}/{metadata['name']}"
        self._runs = runs
        self._body = body
        self._problems: dict[str, str] = {}  # by condition: what was last reported
        self._events: list[dict[str, Any]] = []
        self.put(body)

    def put(self, body: Object) -> None:
        """Take what is new from the object."""
        self._body = body
        status = status_of(body)
        if status.step and status.step != self.table.last_step:
            self.changed = None if not len(self.table) else time.time()
            self.table.add(_line(status))
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
        servers = [("servers", float(status.servers.ready)), ("restarts", float(status.restarts))]
        return {
            **row,
            "path": self._name,
            "problems": [clipped(text) for text in (self._runs.problem, *self._problems.values()) if text],
            "step": status.step or 0,
            "figures": [*figures(self.table), *({"label": label, "value": value} for label, value in servers)],
            "charts": [asdict(chart) for chart in charts_of(self.table.statistics)],
            "statistics": self.table.statistics,
            "servers": [],
            "events": list(self._events),
            "changes": self.table.changes,
        }

    def configuration(self) -> str:
        """The spec."""
        return json_as_yaml(self._body.get("spec") or {})[:MAX_SPEC_BYTES]


class ClusterRuns:
    """The experiments of one namespace, or of all if their list is allowed."""

    def __init__(self, cluster: Cluster, namespace: str | None) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._experiments: dict[str, ClusterExperiment] = {}
        self._lock = threading.Lock()
        self._listed_at = float("-inf")
        self.problem = ""  # why the last list failed

    @classmethod
    def connect(cls, target: ClusterTarget) -> Self:
        """Connect. Raises ``ValueError`` or ``RunError`` if the experiments cannot be listed."""
        cluster = Cluster.connect(target)
        check_api(cluster)
        runs = cls(cluster, target.namespace)
        try:
            runs._list()
        except ApiError as error:
            if error.code != 403 or target.namespace is not None:
                raise
            runs._namespace = cluster.namespace
            runs._list()
        return runs

    def rows(self) -> list[dict[str, Any]]:
        """A line for each experiment, the latest first."""
        self.refresh()
        found = [experiment.row() for experiment in list(self._experiments.values())]
        return sorted(found, key=lambda row: (-(row["changed"] or 0.0), row["name"]))

    def find(self, identifier: str) -> ClusterExperiment | None:
        """The experiment, if the last list had it."""
        return self._experiments.get(identifier)

    def refresh(self) -> None:
        """List the experiments, at most once per ``LIST_S``; a failure is kept as ``problem``."""
        with self._lock:
            if time.monotonic() - self._listed_at < LIST_S:
                return
            try:
                self._list()
                self.problem = ""
            except RunError as error:
                self.problem = f"what is shown may be old: {error}"
            self._listed_at = time.monotonic()

    def _list(self) -> None:
        found: dict[str, ClusterExperiment] = {}
        for body in self._cluster.list(KIND, self._namespace):
            identifier = identifier_of(body)
            known = self._experiments.get(identifier)
            if known is not None:
                known.put(body)
            found[identifier] = known or ClusterExperiment(body, self)
        self._experiments = found


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
