"""Trainers' progress reports in the status, authenticated by a token for one experiment."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from areal_trainer.stats.operator_sink import ProgressSink
from hack.testbed.experiments import Experiment
from hack.testbed.fake_kubelet import end
from hack.testbed.kube_api import eventually
from hack.testbed.operator_process import OperatorProcess
from support.progress import post, token_of, url_of

REPORT = {
    "step": 3,
    "totalSteps": 10,
    "version": 3,
    "reward": 0.5,
    "tokensPerSecond": 12.5,
    "serversCurrent": 2,
    "serversBehind": 1,
}


@pytest.fixture
def running(experiment: Experiment) -> Experiment:
    experiment.apply()
    experiment.until_phase("Running")
    return experiment


def test_a_report_reaches_the_status_within_five_seconds(
    running: Experiment, operator: OperatorProcess, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(token_of(running))
    sink = ProgressSink(url_of(running, operator), tmp_path / "token")
    stats = {"task_reward/avg": 0.5, "total_steps": 10, "version": 2, "staleness/avg": 0.75, "tokens_per_second": 9.0}
    servers = {"rollout/servers_current": 1, "rollout/servers_behind": 1}
    sink.log(2, {**stats, **servers, "eval-rollout/reward": 0.25})
    status = running.until(lambda now: now.get("step") == 2, "step 2", 5.0)
    assert (status["progress"], status["reward"], status["evalReward"], status["staleness"]) == (
        "2/10",
        0.5,
        0.25,
        0.75,
    )
    assert (status["serversCurrent"], status["serversBehind"]) == (1, 1)
    sink.log(3, {**stats, "task_reward/avg": 0.625})
    sink.close()
    status = running.until(lambda now: now.get("step") == 3, "step 3", 5.0)
    assert (status["reward"], status["evalReward"], status["phase"]) == (0.625, 0.25, "Running")


def test_progress_and_the_operators_status_do_not_overwrite_each_other(
    running: Experiment, operator: OperatorProcess
) -> None:
    assert post(url_of(running, operator), token_of(running), REPORT).status_code == 202
    running.until(lambda now: now.get("step") == 3, "step 3", 5.0)
    running.edit(runPolicy__suspend=True)
    status = running.until_phase("Suspended")
    assert (status["step"], status["progress"]) == (3, "3/10")


def test_a_collapse_is_a_condition_an_event_and_the_reason_of_the_end(
    running: Experiment, operator: OperatorProcess
) -> None:
    url, token, healthy = url_of(running, operator), token_of(running), {"healthWarnings": [], "collapsed": False}
    assert post(url, token, {**REPORT, **healthy}).status_code == 202
    running.until_reason("PolicyHealthy", "Healthy")
    assert post(url, token, {**REPORT, "step": 4, "healthWarnings": ["declined"], "collapsed": True}).status_code == 202
    running.until_reason("PolicyHealthy", "PolicyCollapsed")
    assert "the policy collapsed: the reward is far below its best" in running.status["message"]
    running.namespace.behave("trainer", end(2, "error: the policy collapsed: after step 4 the reward is 0"))
    running.until_phase("Failed")
    assert running.condition("Succeeded")["reason"] == "PolicyCollapsed"
    assert running.condition("PolicyHealthy")["reason"] == "PolicyCollapsed"


def test_progress_causes_no_reconcile_and_is_written_at_most_every_three_seconds(
    running: Experiment, operator: OperatorProcess
) -> None:
    def reconciles() -> float:
        lines = [
            line for line in operator.read("/metrics").splitlines() if line.startswith("areal_operator_reconciles")
        ]
        return sum(float(line.split()[-1]) for line in lines if "_created" not in line)

    def calm() -> bool:
        seen = reconciles()
        time.sleep(1.5)
        return reconciles() == seen

    eventually(calm, "earlier reconciles have ended")
    url, token, before = url_of(running, operator), token_of(running), reconciles()
    post(url, token, {**REPORT, "step": 1})
    running.until(lambda now: now.get("step") == 1, "step 1", 5.0)
    version = (running.get() or {})["metadata"]["resourceVersion"]
    for step in range(2, 20):
        assert post(url, token, {**REPORT, "step": step}).status_code == 202
    assert (running.get() or {})["metadata"]["resourceVersion"] == version
    running.until(lambda now: now.get("step") == 19, "the newest", 5.0)
    assert reconciles() == before


def test_a_terminating_operator_writes_the_reports_it_has_accepted(
    running: Experiment, operator: OperatorProcess
) -> None:
    url, token = url_of(running, operator), token_of(running)
    for step in range(1, 4):
        assert post(url, token, {**REPORT, "step": step}).status_code == 202
    try:
        assert operator.stop() == 0
        assert running.status["step"] == 3
    finally:
        operator.start()


def test_only_the_experiments_own_token_is_accepted(running: Experiment, operator: OperatorProcess) -> None:
    url = url_of(running, operator)
    assert post(url, "nonsense", REPORT).status_code == 401
    assert post(url, token_of(running, audience="progress.areal.dev/other"), REPORT).status_code == 401
    assert post(url, token_of(running, account="default"), REPORT).status_code == 401
    assert httpx.post(url, json=REPORT, trust_env=False).status_code == 401
    assert post(url.replace("/exp/", "/none/"), token_of(running), REPORT).status_code == 401
    assert "step" not in running.status


def test_invalid_reports_are_refused(running: Experiment, operator: OperatorProcess) -> None:
    url, token = url_of(running, operator), token_of(running)
    assert post(url, token, b"x" * 70000).status_code == 413
    for wrong in (
        {},
        {"step": -1},
        {"step": "many"},
        [1],
        {"step": 1, "reward": "good"},
        b"{",
        b'{"step":1,"reward":NaN}',
    ):
        assert post(url, token, wrong).status_code == 422, wrong
    assert "step" not in running.status


def test_metrics_cover_the_operator_and_the_experiments(running: Experiment, operator: OperatorProcess) -> None:
    post(url_of(running, operator), token_of(running), REPORT)
    name = running.namespace.name
    line = f'areal_experiment_reward{{name="exp",namespace="{name}"}} 0.5'
    eventually(lambda: line in operator.read("/metrics"), "the reward in the metrics")
    text = operator.read("/metrics")
    for metric in ("reconciles_total", "reconcile_seconds_bucket", "queue_depth", "last_watch_event_age_seconds"):
        assert f"areal_operator_{metric}" in text
    assert "areal_operator_leader 1.0" in text
    assert f'areal_experiment_servers_ready{{name="exp",namespace="{name}"}} 1.0' in text
    assert f'areal_experiment_phase{{name="exp",namespace="{name}",phase="Running"}} 1.0' in text
    assert f'areal_experiment_servers_current{{name="exp",namespace="{name}"}} 2.0' in text
    assert f'areal_experiment_servers_behind{{name="exp",namespace="{name}"}} 1.0' in text
    assert 'areal_operator_reconciles_total{outcome="error"}' in text
