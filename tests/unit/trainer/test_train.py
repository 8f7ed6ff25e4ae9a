"""The order of what a training step does besides training."""

from __future__ import annotations

import signal
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from areal_api.config import GRPOConfig, RecoverConfig
from areal_trainer import train as train_module
from areal_trainer.evaluation.evaluator import Evaluation
from areal_trainer.ranks import Ranks
from areal_trainer.rollout.episode import Interrupted, RolloutError
from areal_trainer.stop import StopSignal


class Engine:
    statistics: dict[str, float] = {}  # noqa: RUF012
    interrupted = False

    def interrupt(self) -> None: ...

    def run_episodes(self, *args: Any) -> list[Any]:
        return []

    def prepare_batch(self, *args: Any) -> list[Any]:
        if self.interrupted:
            raise Interrupted
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


class InterruptedEvaluations(Evaluations):
    """A signal arrives during the evaluation after ``step`` steps."""

    def __init__(self, *rewards: float, step: int, engine: Engine, stop: StopSignal) -> None:
        super().__init__(*rewards)
        self.step, self.engine, self.stop = step, engine, stop

    def evaluate(self, run_episodes: Any, *, step: int) -> Evaluation:
        if step == self.step:
            self.step = -1
            self.engine.interrupted = True
            self.stop._handle(signal.SIGTERM, None)
            raise Interrupted
        return super().evaluate(run_episodes, step=step)


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


@pytest.mark.parametrize(("step", "steps"), [(2, 4), (4, 4)])
def test_an_interrupted_evaluation_is_repeated_by_the_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, steps: int
) -> None:
    stop, checkpoints = StopSignal(), []
    monkeypatch.setattr(train_module, "begin_checkpoint", lambda parts, state: checkpoints.append(state))
    evaluations = Evaluations(0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    components = components_with(monkeypatch, tmp_path, evaluations, steps=steps, freq_steps=1)
    components.config = components.config.model_copy(update={"recover": RecoverConfig(freq_steps=100)})
    components.recovery = SimpleNamespace(wait=lambda: None, raise_failure=lambda: None, idle=lambda: True)
    components.evaluator = InterruptedEvaluations(*evaluations.rewards, step=step, engine=components.engine, stop=stop)
    states = list(train_module.train(components, train_module.RunState(), stop))
    assert (states[-1].step, checkpoints) == (step, [states[-1]])
    assert [line["step"] for line in components.stats.committed] == list(range(1, step))

    components.engine = Engine()
    resumed = list(train_module.train(components, checkpoints[0], StopSignal()))
    assert resumed[-1].held is None
    assert resumed[-1].step == steps
    assert [line["step"] for line in components.stats.committed] == list(range(1, steps + 1))
    rewards = [line["eval-rollout/reward"] for line in components.stats.committed]
    assert rewards == [0.2, 0.3, 0.4, 0.5]
    assert resumed[-1].eval_last == 0.5


def test_an_interrupted_first_evaluation_is_repeated_by_the_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopSignal()
    components = components_with(monkeypatch, tmp_path, Evaluations(), steps=1)
    components.evaluator = InterruptedEvaluations(0.1, 0.2, step=0, engine=components.engine, stop=stop)
    assert list(train_module.train(components, train_module.RunState(), stop)) == []
    components.engine = Engine()
    list(train_module.train(components, train_module.RunState(), StopSignal()))
    assert components.stats.committed[0]["eval-rollout/reward_initial"] == 0.1


def test_without_recovery_an_interrupted_evaluation_leaves_the_statistics_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopSignal()
    components = components_with(monkeypatch, tmp_path, Evaluations(), steps=3, freq_steps=1)
    components.evaluator = InterruptedEvaluations(0.1, 0.2, step=2, engine=components.engine, stop=stop)
    list(train_module.train(components, train_module.RunState(), stop))
    first, last = components.stats.committed
    assert (first["eval-rollout/reward"], last["step"], "eval-rollout/reward" in last) == (0.2, 2, False)
