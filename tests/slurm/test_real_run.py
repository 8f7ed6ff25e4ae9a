"""The tiny experiment with real servers and a real trainer on a Slurm cluster of three nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from hack.testbed.slurm_cluster import SlurmCluster

ROOT = Path(__file__).parents[2]
STEPS = 8


def test_the_tiny_experiment_learns_with_two_servers_and_two_ranks_on_different_nodes(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "areal_launcher.cli", "run", "--on", "slurm", "examples/tiny/experiment.yaml"]
    command += ["servers.replicas=2", "trainer.nodes=2", "storage.accessModes=[ReadWriteMany]", "slurm.nodes=3"]
    command += [f"config.cluster.fileroot={tmp_path}", "config.trial_name=run", f"config.total_train_steps={STEPS}"]
    env = {**os.environ, **cluster.environment}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = tmp_path / "tiny" / "run"
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[-1]["eval-rollout/reward"] > lines[0]["eval-rollout/reward_initial"] + 0.2
    assert "server-1 ready" in done.stdout
    assert (run / "reward.png").exists()
    assert not cluster.jobs()
