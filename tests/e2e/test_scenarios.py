"""Failures and changes that runs on a real cluster must survive. ``make e2e`` runs these in addition to the core."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from hack.testbed.cluster_runs import ClusterRun
from hack.testbed.helm_release import Release
from hack.testbed.kube_api import eventually
from support.node_volume import node_volume

pytestmark = pytest.mark.scenario
STEPS = 16
SHORT = {
    "config.total_train_steps": STEPS,
    "config.evaluator": {"freq_steps": 1000},
    "config.recover": {"freq_steps": 2},
}


@pytest.fixture
def run(release: Release, namespace: str) -> Iterator[ClusterRun]:
    """A short run, not applied yet; deleted afterwards."""
    run = ClusterRun(release.cluster, namespace, changes=dict(SHORT))
    yield run
    run.kubectl("delete", "grpo", "--all", "--wait=true", "--timeout=60s")


def finish(run: ClusterRun) -> None:
    run.until_phase("Succeeded", timeout_s=420.0)
    run.check_finished(steps=int(run.changes["config.total_train_steps"]))


def test_a_killed_operator_does_not_affect_the_run(release: Release, run: ClusterRun) -> None:
    run.apply().until_step(3)
    release.kill_operator()
    status = run.until_step(8)
    assert (status["attempt"], status["restarts"], status["disruptions"]) == (1, 0, 0)
    finish(run)


def test_a_killed_trainer_resumes_from_its_checkpoint(run: ClusterRun) -> None:
    run.apply().until_step(5)
    run.kill_container("trainer")
    status = run.until(lambda now: now.get("attempt") == 2, "a second attempt", 120.0)
    assert (status["restarts"], status["disruptions"]) == (1, 0)
    finish(run)


def test_a_killed_server_serves_again_under_its_name(run: ClusterRun) -> None:
    run.changes |= {"servers.replicas": 2, "config.total_train_steps": 100}  # enough for the server to restart
    run.apply().until_step(3)
    before = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in run.pods("server")}
    killed = run.kill_pod("server", 1)

    def replaced() -> bool:
        now = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in run.pods("server")}
        return now.get(killed, before[killed]) != before[killed] and run.status["servers"]["ready"] == 2

    eventually(replaced, "the killed server to be replaced", 180.0, pause_s=1.0)
    assert run.status["attempt"] == 1
    finish(run)


def test_servers_are_scaled_during_the_run(run: ClusterRun) -> None:
    run.changes |= {"servers.maxReplicas": 3, "config.total_train_steps": 60}
    run.apply().until_step(3)
    run.kubectl("scale", "grpo/tiny", "--replicas=3")
    run.until(lambda now: now["servers"].get("ready") == 3, "three servers", 240.0)
    step = run.status["step"]
    run.until_step(step + 4)
    generated = [run.requests_answered(index) for index in range(3)]
    assert all(generated), f"requests that each server answered: {generated}"
    run.kubectl("scale", "grpo/tiny", "--replicas=1")
    run.until(lambda now: now["servers"].get("summary") == "1/1" and len(run.pods("server")) == 1, "one server", 240.0)
    assert run.status["attempt"] == 1
    finish(run)


def test_a_server_that_is_scaled_down_finishes_its_requests(run: ClusterRun) -> None:
    """Send enough extra requests to keep the server busy for seconds; the run itself must lose nothing."""
    run.changes |= {"servers.replicas": 2, "config.total_train_steps": 40}
    run.apply().until_step(3)
    asking = run.ask_server(1, requests=600, tokens=100)
    assert asking.stdout is not None
    assert asking.stdout.readline() == "begun\n"
    run.kubectl("scale", "grpo/tiny", "--replicas=1")
    run.until(lambda now: run.condition("ServersReady").get("reason") == "Draining", "a draining server", 60.0)
    draining_since = time.time()
    answered, _ = asking.communicate(timeout=300.0)
    answers = json.loads(answered)
    assert [tokens for tokens, _ in answers] == [100] * 600
    assert max(at for _, at in answers) > draining_since, "all requests were answered before the server was draining"
    eventually(
        lambda: len(run.get("pods", "areal.dev/component=server")) == 1, "the drained server to be deleted", 120.0
    )
    finish(run)
    assert run.status["attempt"] == 1


def test_nothing_runs_while_suspended_and_the_run_resumes_afterwards(run: ClusterRun) -> None:
    run.apply().until_step(4)
    run.patch({"runPolicy": {"suspend": True}})
    status = run.until_phase("Suspended", timeout_s=300.0)
    assert run.get("pods") == []
    assert run.get("statefulsets,jobs") == []
    step = status["step"]
    run.patch({"runPolicy": {"suspend": False}})
    run.until_step(step + 1, timeout_s=300.0)
    assert run.status["restarts"] == 0
    finish(run)


def test_a_missing_image_is_named_in_the_status(run: ClusterRun) -> None:
    run.changes["trainer.image"] = "localhost:5000/areal-trainer:of-no-version"
    run.apply()
    status = run.until(lambda now: "of-no-version" in now.get("message", ""), "the image in the message", 240.0)
    assert status["phase"] == "Starting"
    assert run.condition("TrainerRunning")["reason"] == "ImagePull"


def test_a_full_volume_is_named_in_the_status(run: ClusterRun) -> None:
    run.changes |= {"runPolicy.backoffLimit": 6}
    with node_volume(run, "ReadWriteOnce", size="24m"):
        run.apply()
        run.until(lambda now: "space" in now.get("message", "").lower(), "a message about space", 300.0)


def test_a_second_run_on_the_volume_resumes_the_first(run: ClusterRun) -> None:
    run.apply()
    finish(run)
    run.kubectl("delete", "grpo", "tiny", "--wait=true", "--timeout=60s")
    eventually(lambda: not run.get("pods"), "the pods to be deleted", 200.0, pause_s=1.0)
    run.changes["config.total_train_steps"] = STEPS + 4
    run.apply()
    run.until_phase("Succeeded", timeout_s=420.0)
    run.check_finished(steps=STEPS + 4)


def test_a_run_survives_a_restart_of_the_worker_with_everything_on_it(run: ClusterRun) -> None:
    """The operator runs there too, so the status is not updated meanwhile."""
    run.apply().until_step(4)
    run.cluster.stop_node(run.cluster.worker)
    try:
        eventually(lambda: not run.pods("trainer"), "the pods to be evicted", 240.0, pause_s=1.0)
    finally:
        run.cluster.start_node(run.cluster.worker)
    finish(run)
    status = run.status
    assert (status["restarts"], status["attempt"], status["disruptions"]) == (0, 2, 1), json.dumps(status)
