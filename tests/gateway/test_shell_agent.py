"""examples/shell_agent: curl and jq in a separate process, against the gateway in online mode."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
EXPERIMENT = ROOT / "examples/shell_agent/experiment.yaml"
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


@dataclass
class Online:
    """A trainer's side of the experiment: its run directory, and the episodes that wait for sessions."""

    run: Path
    workflows: Workflows
    engine: Engine

    def rewards(self, agent: list[Any], *, episodes: int) -> list[list[float]]:
        """Rewards of each group that the command ``agent`` causes."""

        async def groups() -> list[list[Trajectory] | None]:
            return [await self.workflows.training.arun_episode(self.engine, {}) for _ in range(episodes)]  # type: ignore[arg-type]

        with subprocess.Popen(agent) as process:
            found = asyncio.run(groups())
            assert process.wait(timeout=120) == 0
        return sorted([sample.reward for sample in group or []] for group in found)


@contextmanager
def online(folder: Path, *, samples: int) -> Iterator[Online]:
    settings = [f"config.cluster.fileroot={folder}", f"config.gconfig.n_samples={samples}"]
    config = load_experiment(EXPERIMENT, [*settings, "config.rollout.agent.port=0"]).spec.config
    run = names.run_dir(config)
    run.mkdir(parents=True)
    tokenizer = AutoTokenizer.from_pretrained(config.actor.path)
    engine = Engine(tokenizer)
    workflows = Workflows(config, engine, tokenizer, Reward.of(config.reward))  # type: ignore[arg-type]
    try:
        workflows.start()
        yield Online(run, workflows, engine)
    finally:
        workflows.close()


def test_a_shell_with_curl_takes_part_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps(problem) + "\n" for problem in PROBLEMS))
    with online(tmp_path, samples=2) as trainer:
        agent = [ROOT / "examples/shell_agent/agent.sh", trainer.run, problems, "2"]
        assert trainer.rewards(agent, episodes=2) == [[0.0] * 2, [1.0] * 2]


def test_the_documented_commands_are_a_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/agents.md").read_text(), re.DOTALL)
    (block,) = (block for block in blocks if "/rl/start_session" in block)
    start, place, *commands = block.splitlines()
    assert start.split()[:3] == ["grpo", "run", str(EXPERIMENT.relative_to(ROOT))]
    assert place == f"run={names.run_dir(load_experiment(EXPERIMENT).spec.config)}"
    with online(tmp_path, samples=1) as trainer:
        script = "\n".join(["set -eu", f"run={trainer.run}", *commands])
        assert trainer.rewards(["bash", "-c", script], episodes=1) == [[1.0]]
