"""The order of what a training step does besides training."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from areal_api.config import GRPOConfig
from areal_trainer import train as train_module
from areal_trainer.ranks import Ranks
from areal_trainer.rollout.episode import RolloutError
from areal_trainer.stop import StopSignal


class Engine:
    statistics: dict[str, float] = {}  # noqa: RUF012

    def interrupt(self) -> None: ...

    def prepare_batch(self, *args: Any) -> list[Any]:
        return []


def test_the_final_model_is_saved_although_its_evaluation_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[Path] = []
    evaluations = iter([0.5])

    def evaluate(*args: Any) -> float:
        try:
            return next(evaluations)
        except StopIteration:
            raise RolloutError("17 episodes in a row failed") from None

    step: dict[str, float] = defaultdict(lambda: 0.5)
    monkeypatch.setattr(train_module, "evaluate", evaluate)
    monkeypatch.setattr(train_module, "pack", lambda trajectories: trajectories)
    monkeypatch.setattr(train_module, "train_step", lambda *args, **kwargs: step)
    config = GRPOConfig(
        experiment_name="e",
        trial_name="t",
        actor={"path": "model", "ppo_n_minibatches": 1},
        train_dataset={"path": "data", "batch_size": 1},
        valid_dataset={"path": "data"},
        recover={"mode": "disabled"},
    )
    components: Any = SimpleNamespace(
        config=config,
        run=tmp_path,
        ranks=Ranks(0, 1, torch.device("cpu")),
        policy=SimpleNamespace(save_hf=saved.append),
        engine=Engine(),
        publisher=SimpleNamespace(wait=lambda: None),
        loader=[],
        workflow=None,
        eval_workflow=None,
        accept=None,
        valid_rows=[{}],
        stats=None,
        steps_per_epoch=1,
        total_steps=1,
    )
    with pytest.raises(RolloutError, match="17 episodes in a row"):
        list(train_module.train(components, train_module.RunState(), StopSignal()))
    assert len(saved) == 1
