"""The Grafana board of the chart: what each panel shows and asks. ``helm/generate.py`` writes it as JSON.

Expressions take the maximum by experiment, because every replica of the operator tells the same of each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

TITLE, UID = "AReaL", "areal"
SCHEMA = 39  # of Grafana 11 and newer
COLUMNS, WIDTH, HEIGHT = 24, 8, 8
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
RATE = "$__rate_interval"
ONE = 'namespace=~"$namespace",name="$name"'  # the experiment that is chosen


@dataclass(frozen=True)
class Panel:
    """A graph: its queries as (expression, legend)."""

    title: str
    queries: Sequence[tuple[str, str]]
    about: str = ""
    unit: str = "short"
    stacked: bool = False
    lowest: float | None = 0.0


@dataclass(frozen=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: Sequence[Panel]


def of_run(metric: str) -> str:
    """A figure of the chosen experiment."""
    return f"max by (namespace, name) (areal_experiment_{metric}{{{ONE}}})"


def of_servers(metric: str) -> str:
    """A figure of each server of the chosen experiment."""
    return f"sum by (pod) (sglang:{metric}{{{ONE}}})"


def per_second(metric: str) -> str:
    """A counter of each server of the chosen experiment, a second."""
    return f"sum by (pod) (rate(sglang:{metric}{{{ONE}}}[{RATE}]))"


def reconcile_quantile(share: float) -> str:
    """Seconds within which this share of the reconciles was done."""
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
            "Part of the steps done",
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
            lowest=None,
        ),
    ],
)

RUN = Row(
    "Run $name",
    [
        Panel("Step", [(of_run("step"), "step"), (of_run("total_steps"), "of")]),
        Panel(
            "Reward",
            [(of_run("reward"), "training"), (of_run("eval_reward"), "evaluation")],
            "Mean task reward of the last step, and of the last evaluation.",
            lowest=None,
        ),
        Panel("Staleness", [(of_run("staleness_versions"), "versions")], "Mean weight versions that a batch lagged."),
        Panel("Trained tokens a second", [(of_run("tokens_per_second"), "tokens/s")]),
        Panel(
            "Servers",
            [
                (of_run("servers_desired"), "desired"),
                (of_run("servers_ready"), "ready"),
                (of_run("servers_current"), "with current weights"),
                (of_run("servers_behind"), "with other weights"),
            ],
            "Ready is what their pods say; the weights are what the trainer found when the last batch was complete.",
        ),
        Panel(
            "Restarts",
            [(of_run("restarts"), "failures"), (of_run("disruptions"), "disruptions")],
            "Failures count against runPolicy.backoffLimit, disruptions do not.",
        ),
    ],
)

SERVERS = Row(
    "Servers of $name (SGLang)",
    [
        Panel("Running requests", [(of_servers("num_running_reqs"), "{{pod}}")]),
        Panel("Queued requests", [(of_servers("num_queue_reqs"), "{{pod}}")]),
        Panel("Generated tokens a second", [(per_second("generation_tokens_total"), "{{pod}}")]),
        Panel(
            "KV cache in use",
            [(f"max by (pod) (sglang:token_usage{{{ONE}}})", "{{pod}}")],
            unit="percentunit",
        ),
        Panel(
            "Prompt tokens from the cache",
            [(f"{per_second('cached_tokens_total')} / {per_second('prompt_tokens_total')}", "{{pod}}")],
            "Part of the prompts' tokens that were not computed anew.",
            unit="percentunit",
        ),
        Panel(
            "Time of an answer",
            [
                (
                    "histogram_quantile(0.95, sum by (le, pod) "
                    f"(rate(sglang:e2e_request_latency_seconds_bucket{{{ONE}}}[{RATE}])))",
                    "{{pod}} 95%",
                )
            ],
            "Within which 95% of the requests were answered.",
            unit="s",
        ),
    ],
)

OPERATOR = Row(
    "Operator",
    [
        Panel(
            "Reconciles a second",
            [(f"sum by (outcome) (rate(areal_operator_reconciles_total[{RATE}]))", "{{outcome}}")],
        ),
        Panel(
            "Time of a reconcile",
            [(reconcile_quantile(share), f"{share:.0%}") for share in (0.5, 0.95, 0.99)],
            unit="s",
        ),
        Panel("Experiments that wait for a worker", [("sum by (pod) (areal_operator_queue_depth)", "{{pod}}")]),
        Panel("Holds the Lease", [("max by (pod) (areal_operator_leader)", "{{pod}}")]),
        Panel(
            "Since the cluster was heard",
            [("max by (pod) (areal_operator_last_watch_event_age_seconds)", "{{pod}}")],
            "Some five minutes at most where nothing happens: watches begin anew, and tell everything.",
            unit="s",
        ),
    ],
)

ROWS = (FLEET, RUN, SERVERS, OPERATOR)


def dashboard() -> dict[str, Any]:
    """The board, as Grafana imports it."""
    return {
        "title": TITLE,
        "uid": UID,
        "description": "GRPO experiments, their SGLang servers, and the operator.",
        "tags": ["areal"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # one crosshair for all panels
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": [_source(), *_choices()]},
        "annotations": {"list": []},
        "panels": [{"id": number, **panel} for number, panel in enumerate(_placed(), start=1)],
    }


def text() -> str:
    """The board, as a file."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


def _source() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _choices() -> Iterator[dict[str, Any]]:
    """Variables whose values Grafana asks Prometheus for."""
    queries = {
        "namespace": "label_values(areal_experiment_phase, namespace)",
        "name": 'label_values(areal_experiment_phase{namespace=~"$namespace"}, name)',
    }
    for name, query in queries.items():
        every = {"includeAll": True, "allValue": ".*"} if name == "namespace" else {"includeAll": False}
        yield {
            "name": name,
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,  # whenever the time range changes
            "sort": 1,
            **every,
        }


def _placed() -> Iterator[dict[str, Any]]:
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
    if panel.lowest is not None:
        defaults["min"] = panel.lowest
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
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
