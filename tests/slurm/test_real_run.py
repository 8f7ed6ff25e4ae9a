"""The tiny experiment with real servers and a real trainer on a Slurm cluster of three nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hack.cluster.control_plane import die_with_parent
from hack.testbed.slurm_cluster import SlurmCluster, wait_until

ROOT = Path(__file__).parents[2]
STEPS = 8
TIMEOUT_S = 600
# After the first step it waits until there is a file ``release`` in the run directory.
HELD_REWARD = """
import asyncio, os
from pathlib import Path

async def score(prompt, completions, prompt_ids, completion_ids, answer, **kwargs):
    run = Path(os.environ["AREAL_RUN_DIR"])
    while (run / "stats.jsonl").exists() and not (run / "release").exists():
        await asyncio.sleep(0.1)
    return float(completions == answer)
"""


def command(work: Path, *settings: str) -> list[str]:
    argv = [sys.executable, "-m", "areal_launcher.cli", "run", "--on", "slurm", "examples/tiny/experiment.yaml"]
    argv += [f"config.cluster.fileroot={work}", "config.trial_name=run", f"config.total_train_steps={STEPS}"]
    return [*argv, *settings]


def lines(run: Path) -> list[dict[str, Any]]:
    file = run / "stats.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def test_the_tiny_experiment_learns_with_two_servers_and_two_ranks_on_different_nodes(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    two: Sequence[str] = ("servers.replicas=2", "trainer.nodes=2", "storage.accessModes=[ReadWriteMany]")
    env = {**os.environ, **cluster.environment}
    argv = command(tmp_path, *two, "slurm.nodes=3")
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = tmp_path / "tiny" / "run"
    steps = lines(run)
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert steps[-1]["eval-rollout/reward"] > steps[0]["eval-rollout/reward_initial"] + 0.2
    assert "server-1 ready" in done.stdout
    assert (run / "reward.png").exists()
    assert not cluster.jobs()


@pytest.mark.scenario
def test_a_run_that_is_preempted_during_an_evaluation_repeats_it(cluster: SlurmCluster, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "held_reward.py").write_text(HELD_REWARD)
    dataset = {"path": "examples/tiny/data/test.jsonl", "batch_size": 4, "limit": 4, "instruction": ""}
    held = {"name": "held", "dataset": dataset, "reward": {"path": "held_reward:score", "timeout": TIMEOUT_S}}
    evaluator = {"freq_steps": 3, "sets": [held]}
    run, console = tmp_path / "tiny" / "run", tmp_path / "console.txt"
    argv = command(
        tmp_path, f"config.evaluator={json.dumps(evaluator)}", f"code.directory={tmp_path}/code", "slurm.nodes=1"
    )
    env = {**os.environ, **cluster.environment}
    with console.open("w") as output:
        launcher = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=output, stderr=output, preexec_fn=die_with_parent)
    log, journal = run / "logs" / "trainer.log", run / "launcher.jsonl"

    def wait_for(condition: Callable[[], bool], what: str) -> None:
        wait_until(lambda: launcher.poll() is not None or condition(), what)
        assert launcher.poll() is None, text(console)

    try:
        wait_for(lambda: "evaluating after step 3" in text(log), "an evaluation")
        urgent = ("--partition=urgent", "--nodes=3", "--exclusive", f"--output={os.devnull}", "--wrap=sleep 5")
        cluster.command("sbatch", *urgent)
        wait_for(lambda: "is queued again" in text(journal), "the job is queued again")
        assert "the evaluation after step 3 is interrupted" in text(log)
        assert (run / "recover" / "step3").exists()
        assert [line["step"] for line in lines(run)] == [1, 2]
        (run / "release").touch()
        assert launcher.wait(TIMEOUT_S) == 0, text(console)
    finally:
        launcher.kill()
        launcher.wait()
        cluster.command("scancel", "--name=grpo-tiny-run", check=False)
        wait_until(lambda: not cluster.jobs(), "the cluster is empty")
    assert [line["step"] for line in lines(run)] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines(run) if "eval-rollout/held/reward" in line] == [3, 6, STEPS]
