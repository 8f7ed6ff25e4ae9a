"""examples/shell_agent: curl and jq in a separate process, against the gateway in online mode."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from areal_api import names
from areal_api.load import load_experiment
from areal_trainer.reward.weighted import Reward
from areal_trainer.rollout.make_workflow import Workflows
from areal_trainer.servers.generation import ModelRequest, ModelResponse
from areal_trainer.trajectory import Trajectory

ROOT = Path(__file__).parents[2]
PROBLEMS = [
    {"question": "Tom has 4 jars of 3 keys. How many keys does Tom have?", "answer": "4 * 3 = 12.\n#### 12"},
    {"question": "Tom has 4 jars of 3 pens. How many pens does Tom have?", "answer": "4 * 3 = 12.\n#### 12"},
]


class Engine:
    """Solves problems about keys."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def get_version(self) -> int:
        return 0

    async def agenerate_n(self, request: ModelRequest, n: int) -> list[ModelResponse]:
        knows = "keys" in self.tokenizer.decode(request.input_ids)
        tokens = self.tokenizer.encode(f"#### {12 if knows else 7} <|end|>")
        return [ModelResponse(request.input_ids, tokens, [-0.5] * len(tokens), [0] * len(tokens), "stop", 0.0)] * n


def test_a_shell_with_curl_takes_part_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    experiment = ROOT / "examples/shell_agent/experiment.yaml"
    settings = [f"config.cluster.fileroot={tmp_path}", "config.gconfig.n_samples=2", "config.rollout.agent.port=0"]
    config = load_experiment(experiment, settings).spec.config
    run = names.run_dir(config)
    run.mkdir(parents=True)
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps(problem) + "\n" for problem in PROBLEMS))
    tokenizer = AutoTokenizer.from_pretrained(config.actor.path)
    engine = Engine(tokenizer)
    workflows = Workflows(config, engine, tokenizer, Reward.of(config.reward))  # type: ignore[arg-type]

    async def episodes() -> list[list[Trajectory] | None]:
        return [await workflows.training.arun_episode(engine, {}) for _ in PROBLEMS]  # type: ignore[arg-type]

    try:
        workflows.start()
        agent = subprocess.Popen([ROOT / "examples/shell_agent/agent.sh", run, problems, "2"])
        groups = asyncio.run(episodes())
        assert agent.wait(timeout=120) == 0
    finally:
        workflows.close()
    assert sorted([sample.reward for sample in group or []] for group in groups) == [[0.0] * 2, [1.0] * 2]
