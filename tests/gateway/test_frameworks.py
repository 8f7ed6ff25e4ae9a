"""The agents of examples/ with their real frameworks, through the gateway's process and a model that says its lines."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from areal_api.load import load_experiment
from areal_trainer.reward.weighted import Reward
from areal_trainer.rollout.make_workflow import Workflows
from areal_trainer.servers.generation import ModelRequest, ModelResponse
from areal_trainer.trajectory import Trajectory

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".bin/frameworks/bin/python"
ROW = {
    "messages": [{"role": "user", "content": "Tom has 4 jars of 3 keys. How many keys does Tom have?"}],
    "answer": "4 * 3 = 12.\n#### 12",
    "task_id": "row-7",
}


class Engine:
    """Calls the tool, then repeats its result; parses tool calls in the format that SGLang calls qwen25."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.said: list[list[int]] = []

    def get_version(self) -> int:
        return 3

    async def agenerate_n(self, request: ModelRequest, n: int) -> list[ModelResponse]:
        vocabulary = self.tokenizer.get_vocab()
        (opening,) = (token for token in vocabulary if token.startswith("<tool_call>"))
        (closing,) = (token for token in vocabulary if token.endswith("</tool_call>"))
        prompt = self.tokenizer.decode(request.input_ids)
        result = re.search(r"<\|tool\|> (\d+)", prompt)
        words = ["####", result.group(1)] if result else [opening, "4", "*", "3", closing]
        tokens = [vocabulary[word] for word in [*words, "<|end|>"]]
        self.said.append(tokens)
        count = len(tokens)
        return [ModelResponse(request.input_ids, tokens, [-0.5] * count, [3] * count, "stop", 0.0)] * n

    async def apost(self, path: str, body: dict[str, Any]) -> Any:
        assert path == "/parse_function_call"
        assert [tool["function"]["name"] for tool in body["tools"]] == ["calculate"]
        found = [json.loads(call) for call in re.findall(r"<tool_call>\n(.*?)\n</tool_call>", body["text"])]
        calls = [{"name": call["name"], "parameters": json.dumps(call["arguments"])} for call in found]
        return {"normal_text": "" if calls else body["text"], "calls": calls}


class SilentEngine(Engine):
    """Answers with neither text nor a call."""

    async def agenerate_n(self, request: ModelRequest, n: int) -> list[ModelResponse]:
        return [ModelResponse(request.input_ids, [self.tokenizer.eos_token_id], [-0.5], [3], "stop", 0.0)] * n


def samples_of(example: str, engine_class: type[Engine]) -> tuple[list[Trajectory], Engine, Any, int]:
    """The samples of a row, the model, the tokenizer, and the number of sessions."""
    if not PYTHON.is_file():
        pytest.skip("the frameworks are not installed: make frameworks creates .bin/frameworks/")
    config = load_experiment(ROOT / "examples" / example / "experiment.yaml").spec.config
    tokenizer = AutoTokenizer.from_pretrained(config.actor.path)
    engine = engine_class(tokenizer)
    workflows = Workflows(config, engine, tokenizer, Reward.of(config.reward))  # type: ignore[arg-type]
    try:
        samples = asyncio.run(workflows.training.arun_episode(engine, dict(ROW))) or []  # type: ignore[arg-type]
    finally:
        workflows.close()
    return samples, engine, tokenizer, config.gconfig.n_samples


@pytest.mark.parametrize("example", ["openai_agents", "pydantic_ai_agent"])
def test_a_model_that_answers_nothing_is_trained_with_reward_0(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    samples, _, _, sessions = samples_of(example, SilentEngine)
    assert len(samples) >= sessions  # a second call whose history leaves the empty answer out is a branch
    assert {sample.reward for sample in samples} == {0.0}


@pytest.mark.parametrize("example", ["openai_agents", "pydantic_ai_agent"])
def test_an_agent_calls_its_tool_and_every_token_of_the_model_is_trained(
    example: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    samples, engine, tokenizer, sessions = samples_of(example, Engine)
    assert [sample.reward for sample in samples] == [1.0] * sessions
    for sample in samples:
        trained = sample.input_ids[sample.loss_mask].tolist()
        assert trained in [call + answer for call in engine.said for answer in engine.said]
        assert "<|tool|> 12 <|assistant|> #### 12 <|end|>" in tokenizer.decode(sample.input_ids.tolist())
        assert set(sample.versions[sample.loss_mask].tolist()) == {3}
