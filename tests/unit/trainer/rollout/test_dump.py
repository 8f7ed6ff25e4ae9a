"""The files of samples."""

# T tokens of one sequence

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from areal_api.rollout_columns import file_name
from areal_trainer.rollout import dump
from areal_trainer.rollout.dump import RolloutDump, StepSamples, bounded_rows, discard_after, to_table
from areal_trainer.trajectory import Trajectory
from support.rollout_files import read_samples

MAX_BYTES = 2**30


def trajectory(group: int = 0, *, tokens: int = 3, **changes: Any) -> Trajectory:
    """A prompt of two tokens and a completion of ``tokens``."""
    values: dict[str, Any] = {
        "input_ids": [7, 8, *range(10, 10 + tokens)],
        "loss_mask": [False, False] + [True] * tokens,
        "logprobs": [9.0, 9.0] + [-0.5] * tokens,
        "versions": [-1, -1] + [4] * tokens,
        "reward": 1.0,
        "prompt_len": 2,
        "finish_reason": "stop",
        "prompt": "p",
        "completion": "c",
        "group": group,
    }
    return Trajectory.of_lists(**(values | changes))


def samples(step: int, *trained: Trajectory, rejected: tuple[Trajectory, ...] = ()) -> StepSamples:
    advantages = [np.where(one.loss_mask, np.float32(1.5), np.float32(0)) for one in trained]
    return StepSamples(step, epoch=1, version=4, trained=trained, advantages=advantages, rejected=rejected)


def texts(token_ids: Any) -> list[str]:
    return [f"<{token_id}>" for token_id in token_ids]


def run_dump(run: Path, *, max_bytes: int = MAX_BYTES) -> RolloutDump:
    return RolloutDump(run / "rollouts", max_bytes=max_bytes, token_texts=texts)


def test_a_file_has_every_column_of_a_sample(tmp_path: Path) -> None:
    writer = run_dump(tmp_path)
    statistics = writer.add(samples(6, trajectory(3), trajectory(3, tokens=1, reward=0.0, finish_reason="length")))
    writer.flush()
    first, second = read_samples(tmp_path)[6]
    assert first == {
        "step": 6, "epoch": 1, "version": 4, "task_id": "", "problem": first["problem"], "group": 3, "sample": 0,
        "outcome": "trained", "reward": 1.0, "finish_reason": "stop", "prompt": "p", "completion": "c",
        "prompt_tokens": 2, "trained_tokens": 3, "head_version": 4, "tail_version": 4,
        "token_ids": [7, 8, 10, 11, 12], "tokens": ["<7>", "<8>", "<10>", "<11>", "<12>"],
        "loss_mask": [False, False, True, True, True], "logprobs": [0.0, 0.0, -0.5, -0.5, -0.5],
        "versions": [-1, -1, 4, 4, 4], "advantages": [0.0, 0.0, 1.5, 1.5, 1.5],
    }  # fmt: skip
    assert (second["sample"], second["finish_reason"], second["problem"]) == (1, "length", first["problem"])
    assert statistics == {"rollout/dump_left_out": 0.0, "rollout/dump_deleted_steps": 0.0}


def test_a_problem_is_its_task_or_its_prompt() -> None:
    assert dump.problem_of(trajectory(task_id="t")) == "t"
    same, other = trajectory(1, tokens=9), trajectory(2, input_ids=[7, 9, 10, 11, 12])
    assert dump.problem_of(trajectory()) == dump.problem_of(same) != dump.problem_of(other)


def test_rejected_samples_follow_without_advantages(tmp_path: Path) -> None:
    writer = run_dump(tmp_path)
    writer.add(samples(1, trajectory(1), rejected=(trajectory(0),)))
    writer.flush()
    rows = read_samples(tmp_path)[1]
    assert [(row["group"], row["outcome"], max(row["advantages"])) for row in rows] == [
        (1, "trained", 1.5),
        (0, "rejected", 0.0),
    ]


def test_datasets_reads_the_files(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    writer = run_dump(tmp_path)
    for step in (1, 2):
        writer.add(samples(step, trajectory(step)))
    writer.flush()
    read = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "rollouts/*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert read["step"][:] == [1, 2]
    assert read[0]["tokens"] == ["<7>", "<8>", "<10>", "<11>", "<12>"]


def test_an_empty_step_has_an_empty_file(tmp_path: Path) -> None:
    writer = run_dump(tmp_path)
    writer.add(samples(1))
    writer.flush()
    assert read_samples(tmp_path) == {1: []}


def test_samples_beyond_the_bound_are_left_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = dump.BYTES_PER_TOKEN * 5 + 4 * 2  # of a trajectory with five tokens and two characters
    long, short = trajectory(1, tokens=300), trajectory(2)
    step = samples(1, short, long, short, rejected=(short,))
    assert [row.trajectory.group for row in bounded_rows(step, 2 * size)] == [2, 2]
    assert [row.sample for row in bounded_rows(step, 2 * size)] == [0, 1]
    monkeypatch.setattr(dump, "MAX_STEP_BYTES", 2 * size)
    assert run_dump(tmp_path).add(step)["rollout/dump_left_out"] == 2.0


def test_the_oldest_steps_are_deleted_beyond_the_bound(tmp_path: Path) -> None:
    writer = run_dump(tmp_path)
    writer.add(samples(1, trajectory()))
    writer.flush()
    size = (tmp_path / "rollouts" / file_name(1)).stat().st_size
    writer = run_dump(tmp_path, max_bytes=2 * size + size // 2)
    for step in (2, 3):
        writer.add(samples(step, trajectory()))
        writer.flush()
    statistics = writer.add(samples(4, trajectory()))
    writer.flush()
    assert sorted(read_samples(tmp_path)) == [3, 4]
    assert statistics["rollout/dump_deleted_steps"] == 1.0


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    writer = run_dump(tmp_path)
    for step in (1, 2, 3):
        writer.add(samples(step, trajectory(step)))
    writer.discard_after(1)
    writer.add(samples(2, trajectory(20)))
    writer.flush()
    assert {step: rows[0]["group"] for step, rows in read_samples(tmp_path).items()} == {1: 1, 2: 20}


def test_partial_files_are_removed_and_others_stay(tmp_path: Path) -> None:
    for name in (".step3.parquet.partial", "step2.parquet", "notes.parquet", "step10.parquet"):
        (tmp_path / name).write_bytes(b"")
    discard_after(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.parquet", "step2.parquet"]
    discard_after(tmp_path / "missing", 0)


def test_a_failed_write_is_reported_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "rollouts").write_text("a file in the place of the directory")
    writer = run_dump(tmp_path)
    writer.add(samples(1, trajectory()))
    with pytest.raises(RuntimeError, match=r"step1\.parquet cannot be written: .*rollout\.dump_max_bytes"):
        writer.flush()


def test_surrogates_are_replaced() -> None:
    odd = trajectory(prompt="\ud800", completion="a", task_id="\udfff")
    step = samples(1, odd)
    table = to_table(step, bounded_rows(step, MAX_BYTES), lambda ids: ["\ud800"] * len(ids))
    assert table["prompt"].to_pylist() == ["?"]
    assert table.schema == dump.SCHEMA
    assert isinstance(table, pa.Table)
