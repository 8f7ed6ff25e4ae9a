"""Weights that are not finite are neither published nor checkpointed nor resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.forked_trainer import ForkedTrainer
from support.recovery_runs import configuration, environment
from support.scripted_server import Script, ScriptedServer
from support.tiny_policy import VOCABULARY


@pytest.fixture(scope="module")
def trainer() -> Iterator[ForkedTrainer]:
    with ForkedTrainer() as forked:
        yield forked


def test_a_diverging_run_ends_with_the_last_good_version_and_is_resumed_from_it(
    trainer: ForkedTrainer, tmp_path: Path
) -> None:
    config = configuration(tmp_path, asynchronous=False) | {"total_train_steps": 4, "recover": {"freq_steps": 1}}
    log, run = tmp_path / "log", tmp_path / "runs" / "run"
    with ScriptedServer(Script(vocab_size=VOCABULARY)) as server:
        env = environment(config | {"total_train_steps": 2}, tmp_path / "runs", server)
        assert trainer.run(env, log=log) == 0, log.read_text()[-4000:]
        config["actor"] |= {"optimizer": {"lr": 3e38, "weight_decay": 100.0}}
        Path(env["AREAL_CONFIG"]).write_text(json.dumps(config | {"cluster": {"fileroot": str(tmp_path)}}))
        assert trainer.run(env, log=log) == 1
        assert "the update to version 3 failed" in log.read_text()
        assert "Version 2 stays published" in log.read_text()
        assert max(path.name for path in (run / "weights").iterdir()) == "v2"
        assert max(path.name for path in (run / "recover").iterdir()) == "step2"
        summary = json.loads((run / "summary.json").read_text())
        assert (summary["outcome"], summary["steps"]) == ("failed", 2)

        file = next((run / "recover" / "step2" / "state").glob("*.safetensors"))
        tensors = load_file(file)
        tensors["model.model.norm.weight"][0] = torch.nan
        with_metadata = {
            "DCP_SHARDING_INFO": json.dumps({name: {"saved_offsets": [0] * t.dim()} for name, t in tensors.items()})
        }
        save_file(tensors, file, metadata=with_metadata)
        assert trainer.run(env, log=log) == 2
        assert "step2 cannot be trained: model.norm.weight has weights that are not finite" in log.read_text()
