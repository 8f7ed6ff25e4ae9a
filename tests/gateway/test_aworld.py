"""The agent of examples/aworld with the real AWorld: its rewards, and that the model's tokens are those trained."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from areal_api.load import load_experiment
from areal_trainer.gateway.channel import Sample
from areal_trainer.gateway.errors import GatewayError
from support.chat_tokenizer import END
from support.gateway_app import TOKENIZER, Served, served, text_of, trained_text

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".bin/aworld/bin/python"
SESSIONS = ROOT / "tests/support/aworld_sessions.py"
CALL = '<tool_call>{{"name": "calculator__calculate", "arguments": {{"expression": "{}"}}}}</tool_call>'
ANSWERS = {  # for each problem the model's answers; the last one repeats
    "tool": ["Let me see. " + CALL.format("(2+3)*4"), "So it is\n#### 20"],
    "plain": ["It is\n#### 20"],
    "wrong": ["It is\n#### 21"],
    "endless": [CALL.format("1+1")],
    "bad expression": [CALL.format("__import__('os')"), "#### 20"],
    "unknown tool": ['<tool_call>{"name": "search", "arguments": {}}</tool_call>', "#### 20"],
    "silent": [""],
    "full": ["x" * 1500 + CALL.format("1+1")],
    "failing": [],
}
REWARDS = {"tool": 1, "plain": 1, "wrong": 0, "endless": 0, "bad expression": 1, "unknown tool": 1, "silent": 0}


async def generate(input_ids: list[int], **options: Any) -> list[Sample]:
    text = TOKENIZER.decode(input_ids, skip_special_tokens=False)
    problem = text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
    answers = ANSWERS[problem]
    if not answers:
        raise GatewayError(503, "no server is ready")
    turn = text.count("<|im_start|>assistant\n") - 1
    tokens = [*TOKENIZER.encode(answers[min(turn, len(answers) - 1)]), END]
    return [Sample(tokens, [-0.25] * len(tokens), [7] * len(tokens), "stop")]


async def parse(path: str, body: dict[str, Any]) -> Any:
    found = [json.loads(call) for call in re.findall(r"<tool_call>(.*?)</tool_call>", body["text"])]
    calls = [{"name": call["name"], "parameters": json.dumps(call["arguments"])} for call in found]
    return {"normal_text": body["text"].partition("<tool_call>")[0], "calls": calls}


def run_sessions(gateway: Served, problems: list[str], folder: Path) -> dict[str, tuple[float | str, dict[str, Any]]]:
    """Of each problem the agent's reward or error, and the sample of its session."""
    opened = [gateway.start() for _ in problems]
    work = [{"problem": problem, "key": key} for problem, (_, key) in zip(problems, opened, strict=True)]
    environment = {"PYTHONPATH": str(ROOT), "AWORLD_LOG_PATH": str(folder), "AWORLD_DISABLE_CONSOLE_LOG": "true"}
    done = subprocess.run(
        [PYTHON, SESSIONS, gateway.url], input=json.dumps(work), env=os.environ | environment | {"HOME": str(folder)},
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("OUTCOMES ")]
    outcomes = json.loads(line.removeprefix("OUTCOMES "))
    samples = []
    for session, _ in opened:
        exported = gateway.admin("/export_trajectories", {"session_id": session, "style": "concat"}).json()
        samples.append(exported["trajectories"][0] if exported["trajectories"] else {})
    return dict(zip(problems, zip(outcomes, samples, strict=True), strict=True))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float | str, dict[str, Any]]]:
    """All problems, run concurrently in one process. AWorld held nothing of them afterwards, or this would fail."""
    if not PYTHON.is_file():
        pytest.skip("AWorld is not installed: make aworld creates .bin/aworld/")
    folder = tmp_path_factory.mktemp("aworld")
    with served(agent={"tool_call_parser": "qwen25"}, gconfig={"max_tokens": 3000}) as gateway:
        gateway.engine.generate = generate  # type: ignore[method-assign]
        gateway.engine.parse = parse  # type: ignore[method-assign]
        found = run_sessions(gateway, list(ANSWERS), folder)
    assert [path for path in folder.iterdir() if path.is_dir()] == []  # nothing but logs is written
    return found


def test_a_conversation_with_a_tool_is_one_sample_of_the_server_s_tokens(results: dict[str, Any]) -> None:
    _, sample = results["tool"]
    call, last = ANSWERS["tool"]
    assert trained_text(sample) == f"{call}<|im_end|>{last}<|im_end|>"
    assert "<|im_start|>tool\n20<|im_end|>\n<|im_start|>assistant\nSo it is" in text_of(sample)
    assert '"name": "calculator__calculate"' in text_of(sample).split("<|im_start|>system")[0]
    trained = [index for index, mask in enumerate(sample["loss_mask"]) if mask]
    assert {sample["logprobs"][index] for index in trained} == {-0.25}
    assert {sample["versions"][index] for index in trained} == {7}


@pytest.mark.parametrize(("problem", "reward"), REWARDS.items())
def test_the_agent_s_last_answer_is_scored(results: dict[str, Any], problem: str, reward: float) -> None:
    assert results[problem][0] == reward


@pytest.mark.parametrize(("problem", "words"), [("bad expression", "error"), ("unknown tool", "can not find search")])
def test_the_agent_receives_the_error_of_its_tool(results: dict[str, Any], problem: str, words: str) -> None:
    _, sample = results[problem]
    assert words in text_of(sample)
    assert words not in trained_text(sample)


def test_max_turns_limits_the_agent(results: dict[str, Any]) -> None:
    assert trained_text(results["endless"][1]).count("<|im_end|>") == 3


def test_a_conversation_at_the_limit_of_tokens_is_scored(results: dict[str, Any]) -> None:
    reward, sample = results["full"]
    assert reward == 0.0
    assert trained_text(sample).count("<|im_end|>") == 2  # of the three that max_turns allows


def test_a_failed_server_is_not_scored_as_a_wrong_answer(results: dict[str, Any]) -> None:
    assert "no server is ready" in results["failing"][0]


@pytest.mark.parametrize("name", ["gsm8k_grpo.yaml", "cpu.yaml"])
def test_the_experiments_name_the_agent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_experiment(ROOT / "examples/aworld" / name).spec.config
    assert config.workflow.path == "examples.aworld.agent:Solver"
    assert config.rollout.agent.python == ".bin/aworld/bin/python"
