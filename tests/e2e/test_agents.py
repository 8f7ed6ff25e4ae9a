"""An agent in a pod trains through the gateway's Service, with a tool that runs Python in another pod."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from statistics import mean

import pytest

from areal_api import resource_names
from areal_api.user_code.archive import pack
from hack.testbed.cluster_runs import ClusterRun
from hack.testbed.helm_release import Release

pytestmark = pytest.mark.scenario
STEPS = 20
SOLVER = """
import asyncio

from examples.python_tool.agent import main

asyncio.run(main())
"""


def packed_agent(run: ClusterRun, code: Path) -> ClusterRun:
    """The run with an agent whose program is in the folder ``code``, packed into a ConfigMap as ``grpo run`` does."""
    archive = pack(code)
    data = {resource_names.CODE_ARCHIVE: base64.b64encode(archive.data).decode()}
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "solver-code"}, "binaryData": data}
    run.kubectl("apply", "-f", "-", text=json.dumps(config_map))
    run.changes["agents"] = [{"name": "solver", "command": ["python3", "-m", "packed_solver"], "code": True}]
    run.changes["code"] = {"archive": {"configMap": "solver-code", "sha256": archive.sha256}}
    return run


def test_an_agent_of_packed_code_trains_with_a_sandboxed_tool_although_its_pod_is_killed(
    release: Release, namespace: str, tmp_path: Path
) -> None:
    (tmp_path / "packed_solver.py").write_text(SOLVER)
    run = ClusterRun(release.cluster, namespace, "../python_tool/experiment.yaml", {"config.total_train_steps": STEPS})
    packed_agent(run, tmp_path).apply()
    run.until_step(3, timeout_s=480.0)
    assert run.status["agents"]["summary"] == "2/2"
    tool = run.pod("tool")["metadata"]["name"]
    assert run.kubectl("exec", tool, "--", "find", "/run/secrets", "/var/run/secrets/", "-type", "f") == ""
    with pytest.raises(subprocess.CalledProcessError, match="non-zero exit status"):
        run.kubectl("exec", tool, "--", "touch", "/opt/areal/x")
    run.kill_pod("agent")
    run.until_phase("Succeeded", timeout_s=600.0)
    rewards = [line["task_reward/avg"] for line in run.stats()]
    print(rewards)
    assert len(rewards) == STEPS
    assert mean(rewards[-5:]) > mean(rewards[:5])
    assert run.pods("agent") == run.pods("tool") == []
