"""Prometheus metrics of the operator and of the experiments."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from areal_operator.observed import Object
from areal_operator.store import Key

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
EXPERIMENT_GAUGES = {
    "areal_experiment_step": ("Training steps done.", "step"),
    "areal_experiment_total_steps": ("Training steps of the run.", "totalSteps"),
    "areal_experiment_reward": ("Mean task reward of the last step.", "reward"),
    "areal_experiment_eval_reward": ("Mean task reward of the last evaluation.", "evalReward"),
    "areal_experiment_staleness_versions": ("Mean weight versions that the last batch lagged.", "staleness"),
    "areal_experiment_tokens_per_second": ("Trained tokens per second.", "tokensPerSecond"),
    "areal_experiment_version": ("Version of the published weights.", "version"),
    "areal_experiment_servers_current": (
        "Servers that hold the current weights, as seen by the trainer.",
        "serversCurrent",
    ),
    "areal_experiment_servers_behind": ("Servers that answer but hold other weights.", "serversBehind"),
    "areal_experiment_cache_hit_rate": (
        "Share of prompt tokens of the last step that were found in a prefix cache.",
        "cacheHitRate",
    ),
    "areal_experiment_rollout_wait": ("Share of the last step that the trainer waited for rollouts.", "rolloutWait"),
    "areal_experiment_servers_idle": ("Share of the servers' time in the last step without a request.", "serversIdle"),
    "areal_experiment_agent_sessions": ("Agents' sessions of the last step with a reward.", "agentSessions"),
    "areal_experiment_agent_sessions_lost": (
        "Agents' sessions of the last step without a reward, expired, or with outdated tokens.",
        "agentSessionsLost",
    ),
    "areal_experiment_agent_errors": ("Agents' requests of the last step that got an error.", "agentErrors"),
    "areal_experiment_collapsed": ("1 if the policy had collapsed after the last step.", "collapsed"),
    "areal_experiment_rollbacks": ("Rollbacks of the policy after a collapse.", "rollbacks"),
    "areal_experiment_restarts": ("Restarts that count against backoffLimit.", "restarts"),
    "areal_experiment_disruptions": ("Restarts after disruptions, which do not count.", "disruptions"),
}


class Metrics:
    """The operator's metrics, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconciles = Counter("areal_operator_reconciles", "Reconciles.", ["outcome"], registry=self.registry)
        for outcome in ("success", "error"):
            self.reconciles.labels(
                outcome
            )  # start at 0: rate() does not see the first increment of a counter that starts at 1
        self.seconds = Histogram(
            "areal_operator_reconcile_seconds", "Time of a reconcile.", buckets=BUCKETS, registry=self.registry
        )
        self.last_event_at = time.monotonic()

    def add_gauges(
        self,
        *,
        queue_depth: Callable[[], int],
        leads: Callable[[], bool],
        experiments: Callable[[], Mapping[Key, Object]],
    ) -> None:
        """Add gauges whose values are read when Prometheus scrapes them. ``experiments`` returns their statuses."""
        self.registry.register(_State(self, queue_depth, leads, experiments))


class _State(Collector):
    def __init__(
        self,
        metrics: Metrics,
        queue_depth: Callable[[], int],
        leads: Callable[[], bool],
        experiments: Callable[[], Mapping[Key, Object]],
    ) -> None:
        self._metrics = metrics
        self._queue_depth = queue_depth
        self._leads = leads
        self._experiments = experiments

    def collect(self) -> Iterable[Metric]:
        age_s = time.monotonic() - self._metrics.last_event_at
        yield GaugeMetricFamily(
            "areal_operator_queue_depth", "Experiments that wait for a worker.", self._queue_depth()
        )
        yield GaugeMetricFamily("areal_operator_leader", "1 if this operator holds the Lease.", int(self._leads()))
        yield GaugeMetricFamily(
            "areal_operator_last_watch_event_age_seconds", "Seconds since the last watch event.", age_s
        )
        experiments = self._experiments()
        phases = GaugeMetricFamily(
            "areal_experiment_phase", "1 for the current phase.", labels=["namespace", "name", "phase"]
        )
        for key, status in experiments.items():
            phases.add_metric([*key, status.get("phase", "Pending")], 1)
        yield phases
        for name, (text, field) in EXPERIMENT_GAUGES.items():
            yield self._family(name, text, {key: status.get(field) for key, status in experiments.items()})
        warnings = {key: _length(status.get("healthWarnings")) for key, status in experiments.items()}
        yield self._family("areal_experiment_health_warnings", "Warnings about the policy.", warnings)
        for part in ("ready", "desired"):
            values = {key: (status.get("servers") or {}).get(part) for key, status in experiments.items()}
            yield self._family(f"areal_experiment_servers_{part}", f"Servers that are {part}.", values)

    def _family(self, name: str, text: str, values: Mapping[Key, float | None]) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, text, labels=["namespace", "name"])
        for key, value in values.items():
            if isinstance(value, int | float):
                family.add_metric(list(key), value)
        return family


def _length(values: object) -> int | None:
    return len(values) if isinstance(values, list) else None
