"""The samples of a step."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from areal_launcher import parquet_files
from areal_launcher.bounded_files import DamagedFileError
from areal_launcher.ui import rollouts
from areal_launcher.ui.rollouts import Filter
from support.rollout_files import sample, write_samples


def test_steps_are_in_order_and_other_files_are_none(tmp_path: Path) -> None:
    for step in (10, 9, 100):
        write_samples(tmp_path, step, sample())
    (tmp_path / "rollouts/notes.txt").write_text("")
    (tmp_path / "rollouts/.step7.parquet.partial").write_text("")
    assert rollouts.steps(tmp_path) == [9, 10, 100]


def test_a_run_without_samples_has_no_steps(tmp_path: Path) -> None:
    assert rollouts.steps(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        rollouts.page(tmp_path, 1, Filter(), offset=0)


def test_samples_of_a_problem_are_together(tmp_path: Path) -> None:
    rejected = sample("a", reward=0.0, outcome="rejected", finish_reason="length")
    write_samples(tmp_path, 1, sample("a"), sample("b", reward=0.0), rejected)
    page = rollouts.page(tmp_path, 1, Filter(), offset=0)
    assert [(group["task"], group["count"], group["reward"]) for group in page["groups"]] == [
        ("a", 2, 0.5),
        ("b", 1, 0.0),
    ]
    first, second = page["groups"][0]["samples"]
    assert first == {
        "row": 0, "completion": "an answer", "reward": 1.0, "length": 3, "versions": (3, 5), "truncated": False,
        "rejected": False,
    }  # fmt: skip
    assert (second["row"], second["truncated"], second["rejected"]) == (2, True, True)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (Filter(text="PROBLEM b"), ["b"]),
        (Filter(low=0.5), ["a", "c"]),
        (Filter(high=0.5), ["b"]),
        (Filter(shortest=9), ["c"]),
        (Filter(longest=9), ["a", "b"]),
        (Filter(only="rejected"), ["b"]),
        (Filter(only="trained"), ["a", "c"]),
        (Filter(only="truncated"), ["c"]),
        (Filter(text="nowhere"), []),
    ],
)
def test_samples_are_filtered(tmp_path: Path, chosen: Filter, expected: list[str]) -> None:
    write_samples(tmp_path, 1, sample("a"), sample("b", reward=0.0, outcome="rejected"),
                  sample("c", trained_tokens=50, finish_reason="length"))  # fmt: skip
    page = rollouts.page(tmp_path, 1, chosen, offset=0)
    assert [group["task"] for group in page["groups"]] == expected
    assert (page["samples"], page["admitted"], page["problems"]) == (3, len(expected), len(expected))


def test_tokens_of_a_row_have_their_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_samples(tmp_path, 1, sample("a"), sample("b"), sample("c"))
    pq.write_table(pq.read_table(path), path, row_group_size=2)
    found = rollouts.tokens(tmp_path, 1, 2)
    assert found["tokens"] == ["problem ", "c", "an", " answer", "<end>"]
    assert found["loss_mask"] == [False, False, True, True, True]
    assert (found["logprobs"][2], found["versions"][2], found["advantages"][2]) == (-0.5, 3, 1.5)
    assert found["left_out"] == 0
    monkeypatch.setattr(rollouts, "MAX_TOKENS", 2)
    shortened = rollouts.tokens(tmp_path, 1, 2)
    assert (shortened["tokens"], shortened["left_out"]) == (["problem ", "c"], 3)
    with pytest.raises(FileNotFoundError):
        rollouts.tokens(tmp_path, 1, 3)


def test_damaged_files_are_refused_with_their_name(tmp_path: Path) -> None:
    path = write_samples(tmp_path, 1, *[sample(str(number)) for number in range(50)])
    whole = path.read_bytes()
    damaged = [b"", b"PAR1", whole[: len(whole) // 2], whole[:-20], b"\xff" * 200, b"x" * 40 + whole[40:-9] + whole]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"step1\.parquet"):
            rollouts.page(tmp_path, 1, Filter(), offset=0)


def test_files_with_other_columns_or_without_values_are_refused(tmp_path: Path) -> None:
    path = write_samples(tmp_path, 1, sample())
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["reward"]), path)
    with pytest.raises(DamagedFileError, match="its columns reward are absent"):
        rollouts.page(tmp_path, 1, Filter(), offset=0)
    at = table.schema.get_field_index("reward")
    pq.write_table(table.set_column(at, "reward", pa.array([None], pa.float64())), path)
    with pytest.raises(DamagedFileError, match="a sample lacks a value"):
        rollouts.page(tmp_path, 1, Filter(), offset=0)
    write_samples(tmp_path, 1, sample(versions=[1]))
    with pytest.raises(DamagedFileError, match="different lengths"):
        rollouts.tokens(tmp_path, 1, 0)


def test_a_directory_instead_of_a_file_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "rollouts/step1.parquet").mkdir(parents=True)
    with pytest.raises(DamagedFileError):
        rollouts.page(tmp_path, 1, Filter(), offset=0)


def test_what_is_shown_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "MAX_GROUPS", 3)
    monkeypatch.setattr(rollouts, "MAX_SAMPLES", 2)
    write_samples(tmp_path, 1, *[sample(str(number // 5), completion="x" * 50_000) for number in range(25)])
    page = rollouts.page(tmp_path, 1, Filter(), offset=1)
    assert [group["task"] for group in page["groups"]] == ["1", "2", "3"]
    assert [len(group["samples"]) for group in page["groups"]] == [2, 2, 2]
    assert page["groups"][0]["samples"][0]["completion"].endswith("… (30000 more characters)")


@pytest.mark.parametrize("bound", ["MAX_FILE_BYTES", "MAX_ROWS", "MAX_VALUES", "MAX_TEXT_BYTES"])
def test_huge_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    write_samples(tmp_path, 1, *[sample(str(number)) for number in range(100)])
    monkeypatch.setattr(parquet_files, bound, 99)
    with pytest.raises(DamagedFileError, match=r"step1\.parquet has"):
        rollouts.page(tmp_path, 1, Filter(), offset=0)


def test_a_problem_is_followed_over_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step, reward in ((1, 0.0), (2, 1.0), (3, 1.0)):
        path = write_samples(tmp_path, step, sample("b"), sample("a", reward=reward), sample("a", reward=1.0))
        pq.write_table(pq.read_table(path), path, row_group_size=2)
    write_samples(tmp_path, 4, sample("b"))
    found = rollouts.history(tmp_path, "a")
    assert [(group["step"], group["reward"], group["count"]) for group in found["steps"]] == [
        (1, 0.5, 2), (2, 1.0, 2), (3, 1.0, 2),
    ]  # fmt: skip
    assert [one["row"] for one in found["steps"][0]["samples"]] == [1, 2]  # as in the file, for their tokens
    monkeypatch.setattr(rollouts, "MAX_SEARCHED", 2)
    bounded = rollouts.history(tmp_path, "a")
    assert ([group["step"] for group in bounded["steps"]], bounded["not_searched"]) == ([3], 2)
    with pytest.raises(FileNotFoundError):
        rollouts.history(tmp_path, "nobody's")


def test_a_damaged_step_does_not_hide_the_others(tmp_path: Path) -> None:
    write_samples(tmp_path, 1, sample("a")).write_bytes(b"PAR1")
    write_samples(tmp_path, 2, sample("a"))
    found = rollouts.history(tmp_path, "a")
    assert ([group["step"] for group in found["steps"]], found["damaged"]) == ([2], 1)
