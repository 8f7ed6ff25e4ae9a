"""examples/aworld with the real AWorld: exactly the tokens that the model generated are trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from areal_api.load import load_experiment
from support import aworld_episodes
from support.scripted_server import Script, ScriptedServer

ROOT = Path(__file__).parents[2]
PYTHONS = [Path(os.environ.get("AREAL_TRAINER_PYTHON", ROOT / ".bin/aworld/bin/python")), Path(sys.executable)]
LOGPROB = -0.25


def python_with_aworld() -> str:
    for python in PYTHONS:
        find = "import importlib.util, sys; sys.exit(importlib.util.find_spec('aworld') is None)"
        if python.is_file() and subprocess.run([python, "-c", find], check=False).returncode == 0:
            return str(python)
    pytest.skip("AWorld is not installed: bash examples/aworld/setup.sh makes .bin/aworld/")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Trajectories of all kinds of episodes, run concurrently in one process."""
    python = python_with_aworld()
    folder = tmp_path_factory.mktemp("aworld")
    environment = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "AWORLD_LOG_PATH": str(folder),
        "AWORLD_DISABLE_CONSOLE_LOG": "true",
        "HOME": str(folder),
    }
    script = Script(
        vocab_size=2000, context_length=8192, eos_token_id=2, logprob=LOGPROB, answer="support.aworld_episodes:answer"
    )
    with ScriptedServer(script) as server:
        done = subprocess.run(
            [python, aworld_episodes.__file__, server.address],
            env=os.environ | environment, cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    parsed: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == []
    return parsed


def test_conversation_with_a_tool_is_one_trajectory_that_trains_the_generated_tokens(
    result: dict[str, Any],
) -> None:
    call, last = aworld_episodes.ANSWERS["tool"]
    samples = result["episodes"]["tool"]
    assert len(samples) == 2  # n_samples
    for sample in samples:
        assert sample["trained"] == f"{call}<|im_end|>{last}<|im_end|>"
        assert "<|im_start|>tool\n20<|im_end|>\n<|im_start|>assistant\nSo it is" in sample["text"]
        assert '"name": "calculator__calculate"' in sample["text"].split("<|im_start|>system")[0]
        assert sample["task_id"] == "tool"


def test_every_trained_token_has_its_logprob_and_version(result: dict[str, Any]) -> None:
    for problem in ("tool", "plain", "endless"):
        for sample in result["episodes"][problem]:
            assert sample["versions"] == [0]
            assert set(sample["logprobs"]) == {LOGPROB}


@pytest.mark.parametrize(
    ("problem", "reward"), [("tool", 1.0), ("plain", 1.0), ("wrong", 0.0), ("silent", 0.0), ("endless", 0.0)]
)
def test_final_answer_of_the_agent_is_scored(result: dict[str, Any], problem: str, reward: float) -> None:
    assert [sample["reward"] for sample in result["episodes"][problem]] == [reward] * 2


@pytest.mark.parametrize(
    ("problem", "words"), [("bad expression", "cannot evaluate"), ("unknown tool", "can not find search tool")]
)
def test_agent_receives_the_error_of_its_tool(result: dict[str, Any], problem: str, words: str) -> None:
    for sample in result["episodes"][problem]:
        assert words in sample["text"]
        assert words not in sample["trained"]
        assert sample["reward"] == 1.0


def test_max_turns_limits_the_agent(result: dict[str, Any]) -> None:
    for sample in result["episodes"]["endless"]:
        assert sample["trained"].count("<|im_end|>") == 3


def test_conversation_at_the_token_limit_is_scored(result: dict[str, Any]) -> None:
    for sample in result["full"]:
        assert len(sample["text"]) < 1400
        assert 1 <= sample["trained"].count("<tool_call>") < 9
        assert sample["reward"] == 0.0


def test_server_error_is_not_scored_as_wrong(result: dict[str, Any]) -> None:
    assert result["episodes"]["failing"].startswith("GenerationError")


def test_no_state_of_an_episode_remains(result: dict[str, Any]) -> None:
    assert result["kept"] == 0


@pytest.mark.parametrize("name", ["gsm8k_grpo.yaml", "cpu.yaml"])
def test_experiments_are_valid_and_name_the_workflow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_experiment(ROOT / "examples" / "aworld" / name).spec.config
    assert config.workflow.path == "examples.aworld.custom_workflow:Gsm8kWorkflow"
    assert config.reward.path == "examples.aworld.custom_workflow:gsm8k_reward_fn"
