"""The agents of examples/ on the real SGLang server: each example runs as its README says, and its reward rises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

pytestmark = pytest.mark.scenario
ROOT = Path(__file__).parents[2]
PYTHON = {name: ROOT / f".bin/{name}/bin/python" for name in ("frameworks", "aworld", "verifiers")}
VERIFIERS_ROWS = ROOT / "trainer_image/areal_trainer/environments/verifiers_agent.py"
TIMEOUT_S = 3600  # two minutes on two idle cores; other work may share them


def needs(environment: str) -> None:
    if not PYTHON[environment].is_file():
        pytest.skip(f"{PYTHON[environment]} is missing: make {environment} creates it")


def run(name: str, folder: Path, *settings: str, agent: list[Any] | None = None) -> list[dict[str, Any]]:
    """The statistics of each step of the example's run, beside which the command ``agent`` runs."""
    command = [sys.executable, "-m", "areal_launcher.cli", "run", f"examples/{name}"]
    began = time.monotonic()
    with subprocess.Popen(agent, cwd=ROOT) if agent else nullcontext() as beside:
        try:
            done = subprocess.run(
                [*command, f"config.cluster.fileroot={folder}", *settings],
                cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
            )  # fmt: skip
        finally:
            if beside is not None:
                beside.kill()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (stats,) = folder.glob("*/trial0/stats.jsonl")
    lines = [json.loads(line) for line in stats.read_text().splitlines()]
    rewards = [round(line["task_reward/avg"], 3) for line in lines]
    seconds = [round(line["seconds_per_step"], 1) for line in lines if "seconds_per_step" in line]
    print(f"\n{name}: {time.monotonic() - began:.0f} s; training reward {rewards}; seconds a step {seconds}")
    print({key: value for key, value in lines[-1].items() if key.startswith(("agents/", "rollout/cache"))})
    held_out = ("eval-rollout/reward_initial", "eval-rollout/reward")
    print("held-out reward", [round(line[key], 3) for line in lines for key in held_out if key in line])
    return lines


def assert_learned(lines: list[dict[str, Any]]) -> None:
    rewards = [line["task_reward/avg"] for line in lines]
    assert mean(rewards[-5:]) > mean(rewards[:5]) + 0.1
    assert sum(line["rollout/failed"] for line in lines) == 0
    lost, ended = (sum(line[f"agents/{name}"] for line in lines) for name in ("abandoned", "ended"))
    assert lost <= 0.002 * ended  # a busy machine may break a connection


@pytest.mark.parametrize("name", ["openai_agents", "pydantic_ai_agent"])
def test_an_agent_of_a_framework_learns(name: str, tmp_path: Path) -> None:
    needs("frameworks")
    assert_learned(run(f"{name}/experiment.yaml", tmp_path))


def test_an_agent_that_corrects_itself_learns(tmp_path: Path) -> None:
    assert_learned(run("self_correction/experiment.yaml", tmp_path))


def test_an_agent_in_a_shell_learns(tmp_path: Path) -> None:
    agent = [ROOT / "examples/shell_agent/agent.sh", tmp_path / "shell-agent/trial0"]
    assert_learned(run("shell_agent/experiment.yaml", tmp_path, "config.rollout.agent.port=0", agent=agent))


def test_an_agent_of_aworld_learns(tmp_path: Path) -> None:
    needs("aworld")
    assert_learned(run("aworld/cpu.yaml", tmp_path))


def test_a_taskset_of_verifiers_is_learned(tmp_path: Path) -> None:
    needs("verifiers")
    rows = subprocess.run(
        [PYTHON["verifiers"], VERIFIERS_ROWS, "word_problems", "320"], cwd=ROOT, check=True, text=True, timeout=300,
        stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/examples/verifiers_sums"},
    ).stdout  # fmt: skip
    first = json.loads(rows.splitlines()[0])
    assert (first["task"], first["messages"][0]["role"]) == (0, "user")
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(rows)
    settings = [f"config.train_dataset.path={tasks}", "config.total_train_epochs=2", "config.total_train_steps=20"]
    assert_learned(run("verifiers_sums/experiment.yaml", tmp_path, *settings))
