"""The core of the end-to-end tests: the README's commands on a real cluster while pods are killed."""

from __future__ import annotations

import json

from hack.testbed.cluster_runs import ClusterRun
from hack.testbed.helm_release import Release
from hack.testbed.kube_api import eventually

LEARNED = 0.9


def test_the_example_learns_although_a_server_and_a_trainer_pod_are_killed(release: Release, namespace: str) -> None:
    run = ClusterRun(release.cluster, namespace).apply()
    run.until_step(6, timeout_s=420.0)
    server = run.kill_pod("server")
    run.until_step(12)
    assert server in [pod["metadata"]["name"] for pod in run.pods("server")]
    trainer = run.kill_pod("trainer")
    status = run.until(lambda now: now.get("attempt") == 2, "a second attempt", 120.0)
    assert (status["restarts"], status["disruptions"]) == (0, 1)
    status = run.until_phase("Succeeded", timeout_s=600.0)
    assert trainer not in [pod["metadata"]["name"] for pod in run.pods("trainer")]
    run.check_finished(steps=60)
    summary = run.summary()
    assert summary["eval_first"] <= 0.5
    assert summary["eval_last"] >= LEARNED
    # The operator writes a trainer's last report up to its reporting interval after the phase.
    last = {"evalReward": round(summary["eval_last"], 4), "progress": "60/60"}
    run.until(lambda now: last.items() <= now.items(), f"the last report, {last}", 60.0)
    columns = run.kubectl("get", "grpoexperiments")
    assert "Succeeded" in columns
    assert "60/60" in columns


def test_helm_test_passes(release: Release) -> None:
    release.test()


def test_uninstalling_keeps_the_crd_the_runs_and_their_volumes(release: Release, namespace: str) -> None:
    run = ClusterRun(release.cluster, namespace).apply()
    run.until_step(1, timeout_s=420.0)
    release.uninstall()
    eventually(lambda: not _of_release(release), "the release's objects to be deleted", 60.0, pause_s=1.0)
    assert len(run.pods("server")) == 1
    run.kubectl("delete", "grpo", "tiny", "--wait=true", "--timeout=60s")  # without an operator
    eventually(
        lambda: not run.get("pods,statefulsets,jobs,secrets"),
        "the run's objects except its volume to be deleted",
        240.0,
    )
    run.kubectl("get", "pvc", "tiny-run")


def _of_release(release: Release) -> list[str]:
    kinds = "all,clusterroles,clusterrolebindings,leases,configmaps,secrets"
    found = json.loads(release.cluster.kubectl("get", kinds, "--all-namespaces", "--output", "json"))["items"]
    label = "app.kubernetes.io/instance"
    return [one["metadata"]["name"] for one in found if one["metadata"].get("labels", {}).get(label) == release.name]
