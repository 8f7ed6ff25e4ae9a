"""The chart's dashboard and alerts on a real Prometheus that scrapes a real operator and a real SGLang server."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from areal_api import resource_names
from hack.testbed.experiments import Experiment
from hack.testbed.kube_api import Object, eventually
from hack.testbed.operator_process import NAMESPACE, OperatorProcess
from support.chart import Helm, one
from support.progress import post, token_of, url_of
from support.prometheus import Pod, Prometheus, prometheus, rule_groups, scrape
from support.real_server import real_server
from support.tiny_policy import save_tiny_model

WINDOW = "30s"  # $__rate_interval: some scrapes
REPORT = {
    "totalSteps": 10,
    "version": 1,
    "reward": 0.5,
    "evalReward": 0.25,
    "staleness": 0.5,
    "tokensPerSecond": 12.5,
    "serversCurrent": 1,
    "serversBehind": 0,
    "cacheHitRate": 0.75,
    "rolloutWait": 0.25,
    "serversIdle": 0.5,
    "agentSessions": 6,
    "agentSessionsLost": 1,
    "agentErrors": 0,
    "healthWarnings": [],
    "collapsed": False,
    "rollbacks": 0,
}
MONITORING = ("serviceMonitor", "podMonitor", "prometheusRule", "grafanaDashboard")


def queries(dashboard: Object) -> Iterator[tuple[str, str]]:
    """Title and expression of every query of every panel."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def with_variables(expression: str, **values: str) -> str:
    """An expression as Grafana sends it."""
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], expression)


def found_by_monitor(monitor: Object, experiment: Experiment, address: str) -> list[Pod]:
    """The pods that a PodMonitor selects; all of them are served at ``address``."""
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    pods = [pod["metadata"] for pod in experiment.namespace.list("Pod")]
    found = [pod for pod in pods if wanted <= pod["labels"].items()]
    return [Pod(address, pod["namespace"], pod["name"], pod["labels"]) for pod in found]


@contextmanager
def traffic(address: str, key: str) -> Iterator[None]:
    """Requests with the same prompt, one after another."""
    done = threading.Event()
    body = {"input_ids": list(range(5, 60)), "sampling_params": {"max_new_tokens": 50, "ignore_eos": True}}
    headers = {"Authorization": f"Bearer {key}"}

    def ask() -> None:
        with httpx.Client(base_url=f"http://{address}", headers=headers, timeout=60.0, trust_env=False) as client:
            while not done.is_set():
                client.post("/generate", json=body).raise_for_status()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(60.0)


@pytest.mark.real
def test_every_query_of_the_dashboard_finds_data_of_a_run_and_no_alert_fires(
    experiment: Experiment, operator: OperatorProcess, tmp_path: Path
) -> None:
    chart = Helm(tmp_path / "helm").template(*[f"{name}.enabled=true" for name in MONITORING])
    experiment.apply()
    experiment.until_phase("Running")
    (tmp_path / "key").write_text("k3y")
    model = save_tiny_model(tmp_path / "model", max_position_embeddings=1024)
    with real_server(tmp_path / "server", model, api_key_file=tmp_path / "key") as server:
        monitor = one(chart, "PodMonitor")
        servers = found_by_monitor(monitor, experiment, server.address)
        assert [pod.name for pod in servers] == [f"{resource_names.servers(experiment.name)}-0"]
        operators = [Pod(f"127.0.0.1:{operator.port}", NAMESPACE, operator.identity)]
        scrapes = [scrape(one(chart, "ServiceMonitor"), operators), scrape(monitor, servers)]
        rule = one(chart, "PrometheusRule")
        with prometheus(tmp_path, scrapes, rule_groups(rule)) as running, traffic(server.address, "k3y"):
            url, token = url_of(experiment, operator), token_of(experiment)
            Experiment(experiment.namespace, "other").apply(runPolicy__suspend=True)  # work for the operator
            for step in (1, 2):
                post(url, token, {**REPORT, "step": step}).raise_for_status()
                experiment.until(lambda status, step=step: status.get("step") == step, f"step {step}")
            dashboard = json.loads(one(chart, "ConfigMap", "areal-gsm8k-operator-dashboard")["data"]["areal.json"])
            expect_data(running, dashboard, experiment)
            expect_silence(running, rule)


def expect_data(running: Prometheus, dashboard: Object, experiment: Experiment) -> None:
    """Every query of a panel returns data, and every variable has its values."""
    chosen = {"namespace": experiment.namespace.name, "name": experiment.name, "__rate_interval": WINDOW}
    empty: list[tuple[str, str]] = []

    def all_found() -> bool:
        asked = [(title, with_variables(expr, **chosen)) for title, expr in queries(dashboard)]
        empty[:] = [(title, expr) for title, expr in asked if not running.values(expr)]
        return not empty

    try:
        eventually(all_found, "every query finds data", 60.0, pause_s=1.0)
    except AssertionError as error:
        raise AssertionError(f"{error}; without data: {empty}") from None
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()
            values = {found[label] for found in running.labels(with_variables(metric, **chosen))}
            assert chosen[variable["name"]] in values


def expect_silence(running: Prometheus, rule: Object) -> None:
    """Every alert can be evaluated, and none is firing or pending."""
    active: dict[str, object] = {}

    def silent() -> bool:
        rules = running.rules()
        active.clear()
        active.update({one["name"]: one["alerts"] for one in rules if one["state"] != "inactive"})
        return not active and all(one["health"] != "unknown" for one in rules)

    try:
        eventually(silent, "no alert is active", pause_s=1.0)
    except AssertionError as error:
        raise AssertionError(f"{error}; active: {active}") from None
    rules = running.rules()
    assert [one["name"] for one in rules] == [one["alert"] for one in rule["spec"]["groups"][0]["rules"]]
    assert [one for one in rules if one["health"] != "ok"] == []
