"""The chart's Grafana dashboard: panels and their queries. ``helm/generate.py`` writes it as JSON.

Expressions take the maximum per experiment, because every replica of the operator reports the same metrics.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

TITLE, UID = "AReaL", "areal"
SCHEMA = 39  # schemaVersion of Grafana 11; newer versions read it too
COLUMNS, WIDTH, HEIGHT = 24, 8, 8
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
RATE = "$__rate_interval"
ONE = 'namespace=~"$namespace",name="$name"'  # the selected experiment


@dataclass(frozen=True)
class Panel:
    """A graph. ``queries`` holds pairs of expression and legend."""

    title: str
    queries: Sequence[tuple[str, str]]
    description: str = ""
    unit: str = "short"
    stacked: bool = False
    minimum: float | None = 0.0


@dataclass(frozen=True)
class Row:
    """A titled row of panels."""

    title: str
    panels: Sequence[Panel]


def run_metric(metric: str) -> str:
    """A metric of the selected experiment."""
    return f"max by (namespace, name) (areal_experiment_{metric}{{{ONE}}})"


def server_metric(metric: str) -> str:
    """A metric of each server of the selected experiment."""
    return f"sum by (pod) (sglang:{metric}{{{ONE}}})"


def per_second(metric: str) -> str:
    """Rate per second of a counter of each server of the selected experiment."""
    return f"sum by (pod) (rate(sglang:{metric}{{{ONE}}}[{RATE}]))"


def reconcile_quantile(share: float) -> str:
    """Quantile of the reconcile duration, in seconds."""
    return f"histogram_quantile({share}, sum by (le) (rate(areal_operator_reconcile_seconds_bucket[{RATE}])))"


FLEET = Row(
    "Fleet",
    [
        Panel(
            "Experiments by phase",
            [
                (
                    "count by (phase) "
                    '(max by (namespace, name, phase) (areal_experiment_phase{namespace=~"$namespace"}) == 1)',
                    "{{phase}}",
                )
            ],
            stacked=True,
        ),
        Panel(
            "Completed share of steps",
            [
                (
                    'max by (namespace, name) (areal_experiment_step{namespace=~"$namespace"})'
                    ' / max by (namespace, name) (areal_experiment_total_steps{namespace=~"$namespace"})',
                    "{{namespace}}/{{name}}",
                )
            ],
            unit="percentunit",
        ),
        Panel(
            "Reward",
            [
                (
                    'max by (namespace, name) (areal_experiment_reward{namespace=~"$namespace"})',
                    "{{namespace}}/{{name}}",
                )
            ],
            minimum=None,
        ),
    ],
)

RUN = Row(
    "Run $name",
    [
        Panel("Step", [(run_metric("step"), "step"), (run_metric("total_steps"), "of")]),
        Panel(
            "Reward",
            [(run_metric("reward"), "training"), (run_metric("eval_reward"), "evaluation")],
            "Mean task reward of the last step and of the last evaluation.",
            minimum=None,
        ),
        Panel(
            "Staleness",
            [(run_metric("staleness_versions"), "versions")],
            "Mean weight versions that a batch lagged.",
        ),
        Panel(
            "Policy health",
            [
                (run_metric("health_warnings"), "warnings"),
                (run_metric("collapsed"), "collapsed"),
                (run_metric("rollbacks"), "rollbacks"),
            ],
            "Warnings about the policy, which the condition PolicyHealthy lists; 1 after a collapse; rollbacks so far.",
        ),
        Panel("Trained tokens per second", [(run_metric("tokens_per_second"), "tokens/s")]),
        Panel(
            "Waiting",
            [
                (run_metric("rollout_wait"), "trainer for rollouts"),
                (run_metric("servers_idle"), "servers for requests"),
            ],
            "Shares of the last step: the trainer waits where servers are too few, servers where they are too many.",
        ),
        Panel(
            "Prefix cache",
            [(run_metric("cache_hit_rate"), "share")],
            "Share of prompt tokens of the last step that were found in a server's prefix cache.",
        ),
        Panel(
            "Agents",
            [
                (run_metric("agent_sessions"), "sessions with a reward"),
                (run_metric("agent_sessions_lost"), "sessions lost"),
                (run_metric("agent_errors"), "requests with an error"),
            ],
            "Of the last step. Lost sessions ended without a reward, expired, or had outdated tokens.",
        ),
        Panel(
            "Servers",
            [
                (run_metric("servers_desired"), "desired"),
                (run_metric("servers_ready"), "ready"),
                (run_metric("servers_current"), "with current weights"),
                (run_metric("servers_behind"), "with outdated weights"),
            ],
            "Ready is the pods' readiness; the weights are as the trainer saw them when the last batch was completed.",
        ),
        Panel(
            "Restarts",
            [(run_metric("restarts"), "failures"), (run_metric("disruptions"), "disruptions")],
            "Failures count against runPolicy.backoffLimit, disruptions do not.",
        ),
    ],
)

SERVERS = Row(
    "Servers of $name (SGLang)",
    [
        Panel("Running requests", [(server_metric("num_running_reqs"), "{{pod}}")]),
        Panel("Queued requests", [(server_metric("num_queue_reqs"), "{{pod}}")]),
        Panel("Generated tokens per second", [(per_second("generation_tokens_total"), "{{pod}}")]),
        Panel(
            "KV cache in use",
            [(f"max by (pod) (sglang:token_usage{{{ONE}}})", "{{pod}}")],
            unit="percentunit",
        ),
        Panel(
            "Prompt cache hit rate",
            [(f"{per_second('cached_tokens_total')} / {per_second('prompt_tokens_total')}", "{{pod}}")],
            "Share of prompt tokens that were served from the cache.",
            unit="percentunit",
        ),
        Panel(
            "Request latency",
            [
                (
                    "histogram_quantile(0.95, sum by (le, pod) "
                    f"(rate(sglang:e2e_request_latency_seconds_bucket{{{ONE}}}[{RATE}])))",
                    "{{pod}} 95%",
                )
            ],
            "95th percentile of the request latency.",
            unit="s",
        ),
    ],
)

OPERATOR = Row(
    "Operator",
    [
        Panel(
            "Reconciles per second",
            [(f"sum by (outcome) (rate(areal_operator_reconciles_total[{RATE}]))", "{{outcome}}")],
        ),
        Panel(
            "Reconcile duration",
            [(reconcile_quantile(share), f"{share:.0%}") for share in (0.5, 0.95, 0.99)],
            unit="s",
        ),
        Panel("Work queue depth", [("sum by (pod) (areal_operator_queue_depth)", "{{pod}}")]),
        Panel("Holds the Lease", [("max by (pod) (areal_operator_leader)", "{{pod}}")]),
        Panel(
            "Age of the last watch event",
            [("max by (pod) (areal_operator_last_watch_event_age_seconds)", "{{pod}}")],
            "At most about five minutes in an idle cluster, because watches restart with a complete listing.",
            unit="s",
        ),
    ],
)

ROWS = (FLEET, RUN, SERVERS, OPERATOR)


def dashboard() -> dict[str, Any]:
    """The dashboard in Grafana's import format."""
    return {
        "title": TITLE,
        "uid": UID,
        "description": "GRPO experiments, their SGLang servers, and the operator.",
        "tags": ["areal"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # shared crosshair
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": [_source(), *_variables()]},
        "annotations": {"list": []},
        "panels": [{"id": number, **panel} for number, panel in enumerate(_panels(), start=1)],
    }


def text() -> str:
    """The dashboard as the text of a JSON file."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


def _source() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _variables() -> Iterator[dict[str, Any]]:
    """Variables whose values Grafana queries from Prometheus."""
    queries = {
        "namespace": "label_values(areal_experiment_phase, namespace)",
        "name": 'label_values(areal_experiment_phase{namespace=~"$namespace"}, name)',
    }
    for name, query in queries.items():
        include_all = {"includeAll": True, "allValue": ".*"} if name == "namespace" else {"includeAll": False}
        yield {
            "name": name,
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,  # on time range change
            "sort": 1,
            **include_all,
        }


def _panels() -> Iterator[dict[str, Any]]:
    y = 0
    for row in ROWS:
        yield {
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y},
        }
        y += 1
        per_line = COLUMNS // WIDTH
        for place, panel in enumerate(row.panels):
            line, column = divmod(place, per_line)
            yield _graph(panel, {"h": HEIGHT, "w": WIDTH, "x": column * WIDTH, "y": y + line * HEIGHT})
        y += -(-len(row.panels) // per_line) * HEIGHT


def _graph(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    custom = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 30 if panel.stacked else 0, "showPoints": "auto"}
    custom["stacking"] = {"mode": "normal" if panel.stacked else "none", "group": "A"}
    defaults: dict[str, Any] = {"unit": panel.unit, "custom": custom}
    if panel.minimum is not None:
        defaults["min"] = panel.minimum
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": expr, "legendFormat": legend, "range": True}
            for place, (expr, legend) in enumerate(panel.queries)
        ],
    }
