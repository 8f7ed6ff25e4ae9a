"""The chart's alerts, by promtool: each is raised when its fault lasts, and at no other time."""

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
HEARD = 'areal_operator_last_watch_event_age_seconds{pod="a"}'
LEADERS = 'areal_operator_leader{pod="a"}', 'areal_operator_leader{pod="b"}'
ERRORS = 'areal_operator_reconciles_total{pod="a",outcome="error"}'
# What two operators and a run say, a value a minute; "1x9" is 1 and nine times the same, "0+1x9" grows by 1.
HEALTHY = {
    RUNNING: "1x120",
    STEP: "0+1x120",
    CURRENT: "2x120",
    READY: "2x120",
    DESIRED: "2x120",
    HEARD: "30x120",
    LEADERS[0]: "1x120",
    LEADERS[1]: "0x120",
    ERRORS: "0x120",
}
GONE = None  # the series is not there
NO_RUN = {RUNNING: GONE, STEP: GONE, CURRENT: GONE, READY: GONE, DESIRED: GONE}
Changes = dict[str, str | None]

FAULTS: list[tuple[str, Changes, int, int]] = [  # alert, what is other than healthy, still silent at (min), raised at
    ("ArealRunStalled", {STEP: "0+1x20 20x100"}, 45, 57),
    ("ArealRunStalled", {STEP: GONE}, 29, 31),
    ("ArealOperatorBlind", {HEARD: "0+60x120"}, 14, 17),
    ("ArealServersBehind", {CURRENT: "2x10 1x110"}, 24, 27),
    ("ArealServersBehind", {CURRENT: GONE, READY: "2x10 0x110"}, 24, 27),
    ("ArealServersBehind", {DESIRED: "2x10 3x110"}, 24, 27),
    ("ArealRunFailed", {**NO_RUN, f'areal_experiment_phase{{{RUN},phase="Failed"}}': "_x10 1x110"}, 9, 12),
    ("ArealNobodyOperates", {LEADERS[0]: "1x10 0x110"}, 14, 17),
    ("ArealNobodyOperates", {LEADERS[0]: GONE, LEADERS[1]: GONE}, 4, 6),
    ("ArealReconcilesFail", {ERRORS: "0x10 0+2x110"}, 15, 25),
]
HARMLESS: dict[str, Changes] = {
    "all is well": {},
    "a step takes 25 minutes": {STEP: " ".join(f"{step}x24" for step in range(5))},
    "a run is suspended": {**NO_RUN, f'areal_experiment_phase{{{RUN},phase="Suspended"}}': "1x120", STEP: "5x120"},
    "nothing happens and nothing runs": {**NO_RUN, HEARD: "0+60x120"},
    "a server restarts and loads the weights": {CURRENT: "2x10 1x10 2x100"},
    "servers are scaled down": {DESIRED: "2x10 1x110"},
    "another operator takes over": {LEADERS[0]: "1x10 0x110", LEADERS[1]: "0x12 1x110"},
    "a reconcile fails now and then": {ERRORS: "0+0.2x120"},
}


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the alerts as the chart renders them."""
    folder = tmp_path_factory.mktemp("rules")
    rule = one(Helm(folder / "helm").template("prometheusRule.enabled=true"), "PrometheusRule")
    (folder / "rules.yml").write_text(rule_groups(rule))
    return folder


def check(rules: Path, changes: Changes, raised: dict[int, list[str]]) -> None:
    """Exactly the alerts of ``raised`` are firing at its minutes."""
    series = {name: values for name, values in {**HEALTHY, **changes}.items() if values is not None}
    names = "count by (alertname) (ALERTS{alertstate='firing'})"
    asked: list[dict[str, Any]] = [
        {
            "expr": names,
            "eval_time": f"{minute}m",
            "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts],
        }
        for minute, alerts in raised.items()
    ]
    told = [{"series": name, "values": values} for name, values in series.items()]
    test = {"interval": "1m", "input_series": told, "promql_expr_test": asked}
    content = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [test]}
    (rules / "test.yml").write_text(yaml.safe_dump(content))
    promtool("test", "rules", "test.yml", folder=rules)


def test_the_alerts_are_rules_that_prometheus_takes(rules: Path) -> None:
    assert "6 rules found" in promtool("check", "rules", "--lint=all", "--lint-fatal", "rules.yml", folder=rules)


@pytest.mark.parametrize(("alert", "changes", "silent", "raised"), FAULTS)
def test_an_alert_is_raised_when_its_fault_lasts(
    rules: Path, alert: str, changes: Changes, silent: int, raised: int
) -> None:
    check(rules, changes, {silent: [], raised: [alert]})


@pytest.mark.parametrize("changes", HARMLESS.values(), ids=HARMLESS.keys())
def test_no_alert_is_raised_by_what_is_no_fault(rules: Path, changes: Changes) -> None:
    check(rules, changes, {minute: [] for minute in range(0, 120, 5)})


def test_every_alert_has_its_fault(rules: Path) -> None:
    groups = yaml.safe_load((rules / "rules.yml").read_text())["groups"]
    assert {rule["alert"] for rule in groups[0]["rules"]} == {alert for alert, *_ in FAULTS}
