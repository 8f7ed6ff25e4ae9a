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
from areal_trainer.evaluation.evaluator import Evaluation
from areal_trainer.ranks import Ranks
from areal_trainer.rollout.episode import RolloutError
from areal_trainer.stop import StopSignal


class Engine:
    statistics: dict[str, float] = {}  # noqa: RUF012

    def interrupt(self) -> None: ...

    def run_episodes(self, *args: Any) -> list[Any]:
        return []

    def prepare_batch(self, *args: Any) -> list[Any]:
        return []


class Evaluations:
    """Evaluates to one reward after another, and fails when there is none left."""

    def __init__(self, *rewards: float) -> None:
        self.rewards = list(rewards)
        self.steps: list[int] = []

    def evaluate(self, run_episodes: Any, *, step: int) -> Evaluation:
        self.steps.append(step)
        if not self.rewards:
            raise RolloutError("17 episodes in a row failed")
        reward = self.rewards.pop(0)
        return Evaluation(reward, 1, {"eval-rollout/reward": reward, "eval-rollout/a/reward": -reward}, None)


class Lines:
    def __init__(self) -> None:
        self.committed: list[dict[str, float]] = []

    def commit(self, line: dict[str, float]) -> None:
        self.committed.append(line)


def components_with(
    monkeypatch: pytest.MonkeyPatch, run: Path, evaluations: Evaluations, *, steps: int, **evaluator: Any
) -> Any:
    step: dict[str, float] = defaultdict(lambda: 0.5)
    monkeypatch.setattr(train_module, "pack", lambda trajectories: trajectories)
    monkeypatch.setattr(train_module, "train_step", lambda *args, **kwargs: step)
    saved: list[Path] = []
    config = GRPOConfig(
        experiment_name="e",
        trial_name="t",
        actor={"path": "model", "ppo_n_minibatches": 1},
        train_dataset={"path": "data", "batch_size": 1},
        valid_dataset={"path": "data"},
        recover={"mode": "disabled"},
        evaluator=evaluator,
    )
    return SimpleNamespace(
        config=config,
        run=run,
        ranks=Ranks(0, 1, torch.device("cpu")),
        policy=SimpleNamespace(save_hf=saved.append),
        saved=saved,
        engine=Engine(),
        publisher=SimpleNamespace(wait=lambda: None),
        recovery=SimpleNamespace(wait=lambda: None),
        rollouts=None,
        agent_statistics=dict,
        reward_statistics=dict,
        loader=[],
        workflow=None,
        evaluator=evaluations,
        accept=None,
        stats=Lines(),
        steps_per_epoch=steps,
        total_steps=steps,
    )


def test_the_final_model_is_saved_although_its_evaluation_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    components = components_with(monkeypatch, tmp_path, Evaluations(0.5), steps=1)
    with pytest.raises(RolloutError, match="17 episodes in a row"):
        list(train_module.train(components, train_module.RunState(), StopSignal()))
    assert len(components.saved) == 1


def test_the_best_model_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluations = Evaluations(0.2, 0.6, 0.4, 0.6)
    components = components_with(monkeypatch, tmp_path, evaluations, steps=3, freq_steps=1, save_best=True)
    states = list(train_module.train(components, train_module.RunState(), StopSignal()))
    assert evaluations.steps == [0, 1, 2, 3]
    best, last = tmp_path / "checkpoints" / "best", tmp_path / "checkpoints" / "epoch1step3"
    assert components.saved == [best, best, last]  # before training, after step 1, and at the end
    assert (states[-1].eval_best, states[-1].eval_best_step) == (0.6, 1)
    assert (states[-1].eval_first, states[-1].eval_last) == (0.2, 0.6)


def test_statistics_of_the_evaluation_before_training_are_in_the_first_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    components = components_with(monkeypatch, tmp_path, Evaluations(0.25, 0.5), steps=2)
    list(train_module.train(components, train_module.RunState(), StopSignal()))
    first, last = components.stats.committed
    assert (first["eval-rollout/reward_initial"], first["eval-rollout/a/reward_initial"]) == (0.25, -0.25)
    assert "eval-rollout/reward" not in first
    assert (last["eval-rollout/reward"], last["eval-rollout/a/reward"]) == (0.5, -0.5)
