"""The agent for environments of the PyPI package verifiers, in a worker process with the real package."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from areal_api.agent_config import AgentConfig
from areal_api.config import WorkflowConfig
from areal_trainer.gateway.channel import Sample
from areal_trainer.rollout.agent_pool import AgentProcessError, PooledAgent
from areal_trainer.rollout.make_workflow import agent_class, worker_path
from support.chat_tokenizer import END
from support.gateway_app import TOKENIZER, served, text_of, trained_text

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests/support"  # of sum_taskset.py
PYTHON = ROOT / ".bin/verifiers/bin/python"
CALL = '<tool_call>{"name": "adder_add", "arguments": {"first": 1, "second": 1}}</tool_call>'
ANSWERS = {"1+1?": [CALL, "It is 2"], "2+1?": ["3"]}  # the last one repeats


async def generate(input_ids: list[int], **options: Any) -> list[Sample]:
    text = TOKENIZER.decode(input_ids, skip_special_tokens=False)
    answers = ANSWERS[text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]]
    turn = text.count("<|im_start|>assistant\n") - 1
    tokens = [*TOKENIZER.encode(answers[min(turn, len(answers) - 1)]), END]
    return [Sample(tokens, [-0.25] * len(tokens), [7] * len(tokens), "stop")]


async def parse(path: str, body: dict[str, Any]) -> Any:
    found = [json.loads(call) for call in re.findall(r"<tool_call>(.*?)</tool_call>", body["text"])]
    calls = [{"name": call["name"], "parameters": json.dumps(call["arguments"])} for call in found]
    return {"normal_text": body["text"].partition("<tool_call>")[0], "calls": calls}


async def play(agent: PooledAgent, rows: list[dict[str, Any]], sessions: list[dict[str, str]]) -> list[Any]:
    await agent.start()
    try:
        runs = [agent.run(row, **access) for row, access in zip(rows, sessions, strict=True)]
        return await asyncio.gather(*runs, return_exceptions=True)
    finally:
        agent.close()


@pytest.fixture(scope="module")
def python() -> str:
    if not PYTHON.is_file():
        pytest.skip("verifiers is not installed: make verifiers creates .bin/verifiers/")
    return str(PYTHON)


def test_episodes_are_sessions_with_the_rewards_of_the_environment(python: str) -> None:
    config = AgentConfig(mode="subproc", subproc_max_workers=1, python=python, tool_call_parser="qwen25")
    workflow = WorkflowConfig(path="verifiers:sum_taskset", kwargs={"folder": str(FOLDER)})
    path, kwargs = agent_class(workflow)
    agent = PooledAgent(path=worker_path(path), kwargs=kwargs, config=config)
    rows: list[dict[str, Any]] = [{"task": 1}, {"task": 2}, {"task": 3}, {"task": "first"}, {}]
    with served(agent={"tool_call_parser": "qwen25"}) as gateway:
        gateway.engine.generate = generate  # type: ignore[method-assign]
        gateway.engine.parse = parse  # type: ignore[method-assign]
        opened = [gateway.start() for _ in rows]
        access = [{"base_url": gateway.url, "api_key": key} for _, key in opened]
        reward, *failed = asyncio.run(play(agent, rows, access))
        exported = [
            gateway.admin("/export_trajectories", {"session_id": session, "style": "concat"}).json()["trajectories"]
            for session, _ in opened
        ]
    assert reward == 1.0
    [sample] = exported[0]
    assert trained_text(sample) == f"{CALL}<|im_end|>It is 2<|im_end|>"
    assert "<|im_start|>system\nBe short.<|im_end|>" in text_of(sample)
    assert "<|im_start|>tool\n2<|im_end|>" in text_of(sample)
    assert all(isinstance(failure, AgentProcessError) for failure in failed)
    unknown, beyond, text, missing = map(str, failed)
    assert "nobody knows this sum" in unknown
    assert "the row's column task is 3, but sum_taskset has 3 tasks" in beyond
    assert "the row's column task is 'first'" in text
    assert "the row's column task is None" in missing
