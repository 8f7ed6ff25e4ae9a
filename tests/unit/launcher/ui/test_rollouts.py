"""The samples of a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from areal_launcher.bounded_files import DamagedFileError
from areal_launcher.ui import rollouts
from areal_launcher.ui.rollouts import Filter


def sample(task: str = "1", **changes: Any) -> dict[str, Any]:
    return {
        "task_id": task,
        "sample_idx": 0,
        "seqlen": 12,
        "prompt_len": 4,
        "head_version": 3,
        "tail_version": 5,
        "reward": 1.0,
        "prompt": f"problem {task}",
        "completion": "an answer",
        **changes,
    }


def write(run: Path, step: int, *samples: dict[str, Any], rest: bytes = b"") -> None:
    (run / "rollouts").mkdir(exist_ok=True)
    lines = b"".join(json.dumps(one).encode() + b"\n" for one in samples)
    (run / f"rollouts/step{step}.jsonl").write_bytes(lines + rest)


def test_steps_are_in_order_and_other_files_are_none(tmp_path: Path) -> None:
    for step in (10, 9, 100):
        write(tmp_path, step, sample())
    (tmp_path / "rollouts/notes.txt").write_text("")
    (tmp_path / "rollouts/step7.jsonl.part").write_text("")
    assert rollouts.steps(tmp_path) == [9, 10, 100]


def test_a_run_without_samples_has_no_steps(tmp_path: Path) -> None:
    assert rollouts.steps(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        rollouts.page(tmp_path, 1, Filter(), offset=0)


def test_samples_of_a_problem_are_together(tmp_path: Path) -> None:
    write(tmp_path, 1, sample("a"), sample("b", reward=0.0), sample("a", reward=0.0))
    page = rollouts.page(tmp_path, 1, Filter(), offset=0)
    assert [(group["task"], group["count"], group["reward"]) for group in page["groups"]] == [
        ("a", 2, 0.5),
        ("b", 1, 0.0),
    ]
    assert page["groups"][0]["samples"][0] == {
        "completion": "an answer",
        "reward": 1.0,
        "length": 8,
        "versions": (3, 5),
    }


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (Filter(text="PROBLEM b"), ["b"]),
        (Filter(low=0.5), ["a", "c"]),
        (Filter(high=0.5), ["b"]),
        (Filter(shortest=9), ["c"]),
        (Filter(text="nowhere"), []),
    ],
)
def test_samples_are_filtered(tmp_path: Path, chosen: Filter, expected: list[str]) -> None:
    write(tmp_path, 1, sample("a"), sample("b", reward=0.0), sample("c", seqlen=50))
    page = rollouts.page(tmp_path, 1, chosen, offset=0)
    assert [group["task"] for group in page["groups"]] == expected
    assert (page["samples"], page["admitted"], page["problems"]) == (3, len(expected), len(expected))


def test_damaged_lines_are_counted(tmp_path: Path) -> None:
    write(tmp_path, 1, sample(), rest=b'{"half": \n\xff\n[]\n{"reward": NaN, "prompt": "", "completion": ""}\n{"rew')
    page = rollouts.page(tmp_path, 1, Filter(), offset=0)
    assert (page["samples"], page["damaged"]) == (1, 5)


def test_a_directory_instead_of_a_file_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "rollouts/step1.jsonl").mkdir(parents=True)
    with pytest.raises(DamagedFileError):
        rollouts.page(tmp_path, 1, Filter(), offset=0)


def test_what_is_shown_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "MAX_GROUPS", 3)
    monkeypatch.setattr(rollouts, "MAX_SAMPLES", 2)
    write(tmp_path, 1, *[sample(str(number // 5), completion="x" * 50_000) for number in range(25)])
    page = rollouts.page(tmp_path, 1, Filter(), offset=1)
    assert [group["task"] for group in page["groups"]] == ["1", "2", "3"]
    assert [len(group["samples"]) for group in page["groups"]] == [2, 2, 2]
    assert page["groups"][0]["samples"][0]["completion"].endswith("… (30000 more characters)")


def test_a_huge_file_is_read_to_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1, *[sample(str(number)) for number in range(100)])
    monkeypatch.setattr(rollouts, "MAX_FILE_BYTES", 1000)
    assert rollouts.page(tmp_path, 1, Filter(), offset=0)["samples"] < 10
