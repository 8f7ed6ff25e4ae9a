"""An evaluation of several sets: statistics, files, and what ends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from areal_api.config import GRPOConfig
from areal_trainer.evaluation.evaluator import Evaluator, PreparedSet
from areal_trainer.reward.gsm8k import gsm8k_reward_fn
from areal_trainer.trajectory import Trajectory

COMPLETIONS = {"2+2": [r"\boxed{4}", r"\boxed{4.0}", "5"], "lone \ud800": ["1"] * 3}


def config(**evaluator: Any) -> GRPOConfig:
    return GRPOConfig(
        experiment_name="e",
        actor={"path": "model", "ppo_n_minibatches": 1},
        train_dataset={"path": "train"},
        valid_dataset={"path": "valid"},
        eval_gconfig={"n_samples": 3},
        evaluator={"sets": [{"name": "other", "dataset": {"path": "other"}}]} | evaluator,
    )


def sample(prompt: str, completion: str) -> Trajectory:
    return Trajectory.of_lists(
        input_ids=[len(prompt), 2],
        loss_mask=[False, True],
        logprobs=[0.0, -1.0],
        versions=[-1, 3],
        reward=gsm8k_reward_fn(prompt, completion, [], [], answer="4"),
        prompt_len=1,
        finish_reason="stop",
        prompt=prompt,
        completion=completion,
    )


def run_episodes(rows: list[dict[str, Any]], workflow: Any) -> list[list[Trajectory]]:
    return [[sample(row["prompt"], text) for text in COMPLETIONS.get(row["prompt"], [])] for row in rows]


def evaluator_of(made: GRPOConfig, directory: Path, rows: list[list[str]], final_answer: Any) -> Evaluator:
    workflow: Any = None
    sets = [
        PreparedSet(held_out, [{"prompt": prompt} for prompt in prompts], workflow, final_answer)
        for held_out, prompts in zip(made.held_out, rows, strict=True)
    ]
    return Evaluator(made, sets, directory=directory)


def test_all_sets_are_evaluated_and_written(tmp_path: Path) -> None:
    final_answer = gsm8k_reward_fn.final_answer  # type: ignore[attr-defined]
    evaluator = evaluator_of(config(), tmp_path, [["2+2", "failed"], ["lone \ud800"]], final_answer)
    found = evaluator.evaluate(run_episodes, step=20)
    assert found.reward == pytest.approx(2 / 3)  # the failed problem has no sample
    assert found.statistics["eval-rollout/maj@3"] == 1.0  # 4 and 4.0 are one answer
    assert found.statistics["eval-rollout/other/reward"] == 0.0
    assert found.file == tmp_path / "step20.parquet"
    rows = pq.read_table(found.file).to_pylist()
    assert [(row["set"], row["sample"], row["reward"]) for row in rows] == [
        *(("valid", number, reward) for number, reward in enumerate([1.0, 1.0, 0.0])),
        *(("other", number, 0.0) for number in range(3)),
    ]
    assert rows[0]["answer"] == rows[1]["answer"]
    assert rows[2]["answer"] is None
    assert rows[3]["prompt"] == "lone ?"


def test_files_of_the_oldest_evaluations_are_deleted_beyond_the_bound(tmp_path: Path) -> None:
    made = config(dump_max_bytes=2**20)
    evaluator = evaluator_of(made, tmp_path, [["2+2"], ["2+2"]], None)
    for step in (5, 10):
        (tmp_path / f"step{step}.parquet").write_bytes(b"x" * 2**19)
    evaluator.evaluate(run_episodes, step=15)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step10.parquet", "step15.parquet"]


def test_nothing_is_written_without_dump_to_file(tmp_path: Path) -> None:
    evaluator = evaluator_of(config(dump_to_file=False), tmp_path / "none", [["2+2"], ["2+2"]], None)
    assert evaluator.evaluate(run_episodes, step=0).file is None
    assert not (tmp_path / "none").exists()


def test_a_set_without_a_sample_is_named(tmp_path: Path) -> None:
    evaluator = evaluator_of(config(), tmp_path, [["2+2"], ["failed"]], None)
    with pytest.raises(ValueError, match=r"every episode on evaluator.sets\[0\].dataset was rejected"):
        evaluator.evaluate(run_episodes, step=0)


def test_a_final_answer_that_raises_costs_one_vote(tmp_path: Path) -> None:
    def final_answer(completion: str) -> Any:
        return 7 if completion == "5" else {r"\boxed{4}": "4"}[completion]

    evaluator = evaluator_of(config(), tmp_path, [["2+2"], ["2+2"]], final_answer)
    assert evaluator.evaluate(run_episodes, step=0).statistics["eval-rollout/maj@3"] == 1.0
