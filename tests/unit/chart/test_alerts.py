"""Tests of the chart's alerts with promtool: each fires if its fault persists, and only then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from support.chart import Helm, one
from support.prometheus import promtool, rule_groups

RUN = 'namespace="ns",name="x"'
RUNNING = f'areal_experiment_phase{{{RUN},phase="Running"}}'
STEP = f"areal_experiment_step{{{RUN}}}"
CURRENT, READY, DESIRED = (f"areal_experiment_servers_{part}{{{RUN}}}" for part in ("current", "ready", "desired"))
WARNINGS, COLLAPSED = (f"areal_experiment_{part}{{{RUN}}}" for part in ("health_warnings", "collapsed"))
EVENT_AGE = 'areal_operator_last_watch_event_age_seconds{pod="a"}'
LEADERS = 'areal_operator_leader{pod="a"}', 'areal_operator_leader{pod="b"}'
ERRORS = 'areal_operator_reconciles_total{pod="a",outcome="error"}'
# Metrics of two operators and a run, one value per minute; "1x9" repeats 1 nine more times, "0+1x9" grows by 1.
HEALTHY = {
    RUNNING: "1x120",
    STEP: "0+1x120",
    CURRENT: "2x120",
    READY: "2x120",
    DESIRED: "2x120",
    WARNINGS: "0x120",
    COLLAPSED: "0x120",
    EVENT_AGE: "30x120",
    LEADERS[0]: "1x120",
    LEADERS[1]: "0x120",
    ERRORS: "0x120",
}
ABSENT = None  # the series does not exist
NO_RUN = {RUNNING: ABSENT, STEP: ABSENT, CURRENT: ABSENT, READY: ABSENT, DESIRED: ABSENT}
Changes = dict[str, str | None]

FAULTS: list[tuple[str, Changes, int, int]] = [  # alert, changes, silent at (min), firing at
    ("ArealRunStalled", {STEP: "0+1x20 20x100"}, 45, 57),
    ("ArealRunStalled", {STEP: ABSENT}, 29, 31),
    ("ArealOperatorBlind", {EVENT_AGE: "0+60x120"}, 14, 17),
    ("ArealServersBehind", {CURRENT: "2x10 1x110"}, 24, 27),
    ("ArealServersBehind", {CURRENT: ABSENT, READY: "2x10 0x110"}, 24, 27),
    ("ArealServersBehind", {DESIRED: "2x10 3x110"}, 24, 27),
    ("ArealRunFailed", {**NO_RUN, f'areal_experiment_phase{{{RUN},phase="Failed"}}': "_x10 1x110"}, 9, 12),
    ("ArealPolicyWarnings", {WARNINGS: "0x10 2x110"}, 19, 22),
    ("ArealPolicyCollapsed", {COLLAPSED: "0x10 1x110"}, 9, 12),
    ("ArealNobodyOperates", {LEADERS[0]: "1x10 0x110"}, 14, 17),
    ("ArealNobodyOperates", {LEADERS[0]: ABSENT, LEADERS[1]: ABSENT}, 4, 6),
    ("ArealReconcilesFail", {ERRORS: "0x10 0+2x110"}, 15, 25),
]
HARMLESS: dict[str, Changes] = {
    "everything is healthy": {},
    "the reward dips for a few minutes": {WARNINGS: "0x10 1x5 0x100"},
    "a run has ended with a collapsed policy": {
        **NO_RUN,
        f'areal_experiment_phase{{{RUN},phase="Succeeded"}}': "1x120",
        WARNINGS: "2x120",
        COLLAPSED: "1x120",
    },
    "the trainer does not report on the policy": {WARNINGS: ABSENT, COLLAPSED: ABSENT},
    "a step takes 25 minutes": {STEP: " ".join(f"{step}x24" for step in range(5))},
    "a run is suspended": {**NO_RUN, f'areal_experiment_phase{{{RUN},phase="Suspended"}}': "1x120", STEP: "5x120"},
    "the cluster is idle": {**NO_RUN, EVENT_AGE: "0+60x120"},
    "a server restarts and loads the weights": {CURRENT: "2x10 1x10 2x100"},
    "servers are scaled down": {DESIRED: "2x10 1x110"},
    "another operator takes over": {LEADERS[0]: "1x10 0x110", LEADERS[1]: "0x12 1x110"},
    "a reconcile fails occasionally": {ERRORS: "0+0.2x120"},
}


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the chart's rendered alerts."""
    folder = tmp_path_factory.mktemp("rules")
    rule = one(Helm(folder / "helm").template("prometheusRule.enabled=true"), "PrometheusRule")
    (folder / "rules.yml").write_text(rule_groups(rule))
    return folder


def check(rules: Path, changes: Changes, firing: dict[int, list[str]]) -> None:
    """Asserts that at each minute of ``firing`` exactly its alerts fire."""
    series = {name: values for name, values in {**HEALTHY, **changes}.items() if values is not None}
    query = "count by (alertname) (ALERTS{alertstate='firing'})"
    expected: list[dict[str, Any]] = [
        {
            "expr": query,
            "eval_time": f"{minute}m",
            "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts],
        }
        for minute, alerts in firing.items()
    ]
    input_series = [{"series": name, "values": values} for name, values in series.items()]
    test = {"interval": "1m", "input_series": input_series, "promql_expr_test": expected}
    content = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [test]}
    (rules / "test.yml").write_text(yaml.safe_dump(content))
    promtool("test", "rules", "test.yml", folder=rules)


def test_prometheus_accepts_the_alerts(rules: Path) -> None:
    assert "8 rules found" in promtool("check", "rules", "--lint=all", "--lint-fatal", "rules.yml", folder=rules)


@pytest.mark.parametrize(("alert", "changes", "silent", "firing"), FAULTS)
def test_an_alert_fires_if_its_fault_persists(
    rules: Path, alert: str, changes: Changes, silent: int, firing: int
) -> None:
    check(rules, changes, {silent: [], firing: [alert]})


@pytest.mark.parametrize("changes", HARMLESS.values(), ids=HARMLESS.keys())
def test_no_alert_fires_without_a_fault(rules: Path, changes: Changes) -> None:
    check(rules, changes, {minute: [] for minute in range(0, 120, 5)})


def test_every_alert_is_tested(rules: Path) -> None:
    groups = yaml.safe_load((rules / "rules.yml").read_text())["groups"]
    assert {rule["alert"] for rule in groups[0]["rules"]} == {alert for alert, *_ in FAULTS}
