"""examples/tiny/two-by-two.yaml in pods: two servers and two ranks, in one trainer pod or in two."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from areal_api import resource_names
from hack.testbed.cluster_runs import ClusterRun
from hack.testbed.helm_release import Release
from support.node_volume import node_volume

pytestmark = pytest.mark.scenario
LEARNED = 0.9
STEPS = 60
TWO_PODS = {"trainer.nodes": 2, "trainer.processesPerNode": 1}


@pytest.fixture
def run(release: Release, namespace: str) -> Iterator[ClusterRun]:
    """The unchanged file, not applied yet; deleted afterwards."""
    run = ClusterRun(release.cluster, namespace, "two-by-two.yaml")
    yield run
    run.kubectl("delete", "grpo", "--all", "--wait=true", "--timeout=60s")


def finish(run: ClusterRun) -> None:
    run.until_phase("Succeeded", timeout_s=600.0)
    run.check_finished(steps=STEPS)
    assert run.summary()["eval_last"] >= LEARNED


def test_two_ranks_in_one_pod_and_two_servers_learn(run: ClusterRun) -> None:
    run.apply().until_step(3, timeout_s=420.0)
    assert (len(run.pods("trainer")), len(run.pods("server"))) == (1, 2)
    generated = [run.requests_answered(index) for index in range(2)]
    assert all(generated), f"requests that each server answered: {generated}"
    finish(run)
    assert run.status["attempt"] == 1


def test_two_pods_with_one_rank_each_learn_and_resume_together_after_one_is_killed(run: ClusterRun) -> None:
    run.changes |= TWO_PODS
    with node_volume(run, "ReadWriteMany"):
        run.apply().until_step(13, timeout_s=420.0)
        assert len(run.pods("trainer")) == 2
        run.kill_pod("trainer", 1)
        status = run.until(lambda now: now.get("attempt") == 2, "a second attempt", 240.0)
        assert (status["restarts"], status["disruptions"]) == (0, 1), status["conditions"]
        run.until_step(20, timeout_s=300.0)
        assert [pod["metadata"]["labels"][resource_names.ATTEMPT] for pod in run.pods("trainer")] == ["2", "2"]
        finish(run)
