"""``grpo --on kubernetes`` on a real cluster, with logs and results from real pods."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from hack.testbed.helm_release import REPOSITORY, Release

pytestmark = pytest.mark.scenario
TINY = "examples/tiny/experiment.yaml"
SHORT = ["config.total_train_steps=8", "config.evaluator={freq_steps: 1000}"]


class Grpo:
    """The ``grpo`` command for one namespace of the cluster."""

    def __init__(self, release: Release, namespace: str) -> None:
        self.place = ["--on", "kubernetes", "--kubeconfig", str(release.cluster.kubeconfig), "--namespace", namespace]

    def __call__(self, *arguments: str, timeout_s: float = 480.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "areal_launcher.cli", *arguments, *self.place],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            timeout=timeout_s,
            check=False,
        )


@pytest.fixture
def grpo(release: Release, namespace: str) -> Grpo:
    return Grpo(release, namespace)


def test_a_run_is_followed_to_its_end_and_its_results_are_fetched(
    grpo: Grpo, release: Release, namespace: str, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    done = grpo("run", TINY, *SHORT, "--results", str(results), "--checkpoint")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "experiment tiny created" in done.stdout
    AutoModelForCausalLM.from_pretrained(results / "checkpoints" / "epoch1step8")
    assert "step 8/8" in done.stdout
    steps = [json.loads(line)["step"] for line in (results / "stats.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 9))
    assert json.loads((results / "summary.json").read_text())["steps"] == 8
    assert (results / "reward.png").stat().st_size > 10_000
    assert "total_train_steps: 8" in (results / "config.yaml").read_text()
    readers = ["get", "pods", "--namespace", namespace, "--selector", "app.kubernetes.io/managed-by=grpo", "-o", "name"]
    assert release.cluster.kubectl(*readers) == ""
    logs = grpo("logs", "tiny", "trainer", "--follow").stdout.splitlines()
    assert logs
    assert all(line.startswith("tiny-trainer-1-0-") for line in logs)
    assert "Succeeded" in grpo("status", "tiny").stdout
    again = grpo("run", TINY, *SHORT, "--results", str(results))
    assert (again.returncode, "experiment tiny exists, following it" in again.stdout) == (0, True)


def test_a_failed_run_shows_the_last_lines_of_its_pod(grpo: Grpo, tmp_path: Path) -> None:
    wrong = "config.train_dataset.question_column=nothing"
    done = grpo("run", TINY, *SHORT, wrong, "runPolicy.backoffLimit=0", "--results", str(tmp_path / "results"))
    assert done.returncode not in (0, 130)
    lines = done.stderr.splitlines()
    assert "tiny Failed: attempt 1 failed: " in lines[-1]
    assert any(line.startswith("  | ") and "nothing" in line for line in lines)
