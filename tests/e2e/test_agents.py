"""An agent in a pod trains through the gateway's Service, with a tool that runs Python in another pod."""

from __future__ import annotations

import subprocess
from statistics import mean

import pytest

from hack.testbed.cluster_runs import ClusterRun
from hack.testbed.helm_release import Release

pytestmark = pytest.mark.scenario
STEPS = 20


def test_an_agent_trains_with_a_sandboxed_tool_although_its_pod_is_killed(release: Release, namespace: str) -> None:
    steps = {"config.total_train_steps": STEPS}
    run = ClusterRun(release.cluster, namespace, "../python_tool/experiment.yaml", steps).apply()
    run.until_step(3, timeout_s=480.0)
    assert run.status["agents"]["summary"] == "2/2"
    tool = run.pod("tool")["metadata"]["name"]
    assert run.kubectl("exec", tool, "--", "find", "/run/secrets", "/var/run/secrets/", "-type", "f") == ""
    with pytest.raises(subprocess.CalledProcessError, match="non-zero exit status"):
        run.kubectl("exec", tool, "--", "touch", "/opt/areal/x")
    run.kill_pod("agent")
    run.until_phase("Succeeded", timeout_s=600.0)
    rewards = [line["task_reward"] for line in run.stats()]
    print(rewards)
    assert len(rewards) == STEPS
    assert mean(rewards[-5:]) > mean(rewards[:5])
    assert run.pods("agent") == run.pods("tool") == []
