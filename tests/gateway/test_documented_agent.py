"""The agent that docs/agents.md begins with, as it is printed there."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from areal_api.load import load_experiment
from areal_trainer.reward.weighted import Reward
from areal_trainer.rollout.make_workflow import Workflows
from areal_trainer.servers.generation import ModelRequest, ModelResponse

ROOT = Path(__file__).parents[2]
QUESTION = "Tom has 4 jars of 3 keys. How many keys does Tom have?"
ROW = {"messages": [{"role": "user", "content": QUESTION}], "answer": "4 * 3 = 12.\n#### 12"}


class Engine:
    """Solves half of the problems."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.calls = 0

    def get_version(self) -> int:
        return 0

    async def agenerate_n(self, request: ModelRequest, n: int) -> list[ModelResponse]:
        self.calls += 1
        tokens = self.tokenizer.encode(f"4 * 3 = 12 . #### {12 if self.calls % 2 else 7} <|end|>")
        return [ModelResponse(request.input_ids, tokens, [-0.5] * len(tokens), [0] * len(tokens), "stop", 0.0)] * n


def test_the_documented_agent_and_command_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/agents.md").read_text()
    (code, *_) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (command,) = re.findall(r"^grpo run (.*config.workflow.path=my_agent:Solver.*)$", text, re.MULTILINE)
    (tmp_path / "my_agent.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(ROOT)
    file, *settings = command.split()
    config = load_experiment(ROOT / file, settings).spec.config
    tokenizer = AutoTokenizer.from_pretrained(config.actor.path)
    engine = Engine(tokenizer)
    workflows = Workflows(config, engine, tokenizer, Reward.of(config.reward))  # type: ignore[arg-type]
    try:
        samples = asyncio.run(workflows.training.arun_episode(engine, dict(ROW))) or []  # type: ignore[arg-type]
    finally:
        workflows.close()
    assert sorted(sample.reward for sample in samples) == [0.0] * 4 + [1.0] * 4
