"""Two ranks over gloo: training does not depend on the number of ranks, and resumes with another number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from support.recovery_runs import configuration, environment, learned, torchrun
from support.scripted_server import Script, ScriptedServer
from support.tiny_policy import VOCABULARY


def test_two_ranks_train_like_one_and_one_resumes_from_two(tmp_path: Path) -> None:
    config = configuration(tmp_path, asynchronous=False)
    # Minibatches depend on the ranks, and a decaying learning rate on the number of steps.
    config["actor"] |= {"ppo_n_minibatches": 1, "optimizer": {"lr": 0.01}}
    with ScriptedServer(Script(vocab_size=VOCABULARY)) as server:
        one = environment(config | {"total_train_steps": 4}, tmp_path / "one", server)
        assert torchrun(one, ranks=1, log=tmp_path / "one.log") == 0, (tmp_path / "one.log").read_text()[-3000:]
    with ScriptedServer(Script(vocab_size=VOCABULARY)) as server:
        two = environment(config | {"total_train_steps": 2}, tmp_path / "two", server)
        log = tmp_path / "two.log"
        assert torchrun(two, ranks=2, log=log) == 0, log.read_text()[-3000:]
        file = Path(two["AREAL_CONFIG"])
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"total_train_steps": 4}))
        assert torchrun(two, ranks=1, log=log) == 0, log.read_text()[-3000:]
    alone, together = learned(tmp_path / "one"), learned(tmp_path / "two")
    assert [line["step"] for line in together] == [1, 2, 3, 4]
    for name in ("task_reward/avg", "grpo_actor/actor_loss/avg", "grpo_actor/grad_norm", "n_tokens"):
        assert [line[name] for line in together] == pytest.approx([line[name] for line in alone], rel=1e-4, abs=1e-6)
    summary = json.loads((tmp_path / "two/run/summary.json").read_text())
    assert summary["outcome"] == "succeeded"
    assert summary["steps"] == 4
