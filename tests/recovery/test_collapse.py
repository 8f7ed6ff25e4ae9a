"""A run whose policy collapses does not succeed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from areal_trainer import health
from support.forked_trainer import ForkedTrainer
from support.recovery_runs import configuration, environment
from support.scripted_server import Script, ScriptedServer
from support.tiny_policy import VOCABULARY


@pytest.fixture(scope="module")
def trainer() -> Iterator[ForkedTrainer]:
    with ForkedTrainer() as forked:
        yield forked


@pytest.mark.parametrize(("on_collapse", "steps"), [("stop", 6), ("warn", 8)])
def test_a_collapsed_run_fails_and_is_not_retried(
    trainer: ForkedTrainer, tmp_path: Path, on_collapse: str, steps: int
) -> None:
    config = configuration(tmp_path, asynchronous=False) | {
        "total_train_steps": 8,
        "gconfig": {"n_samples": 12, "max_new_tokens": 6},
    }
    config["actor"] |= {"on_collapse": on_collapse}
    # Reward 1 in the first three steps of four prompts, then 0.
    config["reward"] = {"path": "support.rewards:one_for_the_first_samples", "processes": 0}
    log, run = tmp_path / "log", tmp_path / "runs" / "run"
    with ScriptedServer(Script(vocab_size=VOCABULARY)) as server:
        env = environment(config, tmp_path / "runs", server) | {"REWARD_SAMPLES": str(health.WINDOW * 4 * 12)}
        assert trainer.run(env, log=log) == 2, log.read_text()[-4000:]
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["outcome"], summary["steps"]) == ("collapsed", steps)
    assert "the policy collapsed" in log.read_text()
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert [line["health/collapsed"] for line in lines] == [0.0] * 5 + [1.0] * (steps - 5)
