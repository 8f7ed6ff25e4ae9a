"""`grpo trace`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from areal_launcher.cli import main


def span(name: str, start: int, end: int, **changes: Any) -> dict[str, Any]:
    return {
        "name": name, "start": start, "end": end, "id": "1", "parent": None, "root": "r1", "rank": 0, "error": None,
        "attributes": {}, **changes,
    }  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text("{}")
    return tmp_path


def write(run: Path, *lines: dict[str, Any] | str, name: str = "rank0.spans.jsonl") -> None:
    (run / "traces").mkdir(exist_ok=True)
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (run / "traces" / name).write_text(text)


def events(run: Path) -> list[dict[str, Any]]:
    assert main(["trace", str(run)]) == 0
    found: list[dict[str, Any]] = json.loads((run / "trace.json").read_text())["traceEvents"]
    return found


def test_stages_and_episodes_become_events_in_microseconds(run: Path) -> None:
    write(
        run,
        span("train_step", 5_000_000, 7_500_000, attributes={"thread": "training"}),
        span("episode", 1_000, 9_000, root="r7", attributes={"number": 3}, error="KeyError: x"),
    )
    stage, begin, end, *labels = events(run)
    assert stage == {
        "name": "train_step", "pid": 0, "ph": "X", "tid": 1, "ts": 5_000.0, "dur": 2_500.0, "args": {},
    }  # fmt: skip
    assert (begin["ph"], begin["id"], begin["ts"]) == ("b", "r7", 1.0)
    assert begin["args"] == {"number": 3, "error": "KeyError: x"}
    assert (end["ph"], end["ts"]) == ("e", 9.0)
    assert [label["args"]["name"] for label in labels] == ["rank 0", "training", "episodes"]


def test_ranks_are_processes(run: Path) -> None:
    write(run, span("a", 1, 2))
    write(run, span("b", 1, 2, rank=1), name="rank1.spans.jsonl")
    assert {event["pid"] for event in events(run)} == {0, 1}


def test_damaged_lines_are_left_out_and_counted(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wrong = [span("b", 9, 1), span("c", 1, 2, attributes=3), span("d", 1, 2, rank=True), {"name": "e"}]
    write(run, span("a", 1, 2), "half a li", "[" * 10_000, *wrong)
    assert [event["name"] for event in events(run) if event["ph"] == "b"] == ["a"]
    assert "1 spans, 6 damaged lines are left out" in capfd.readouterr().out


def test_a_run_without_spans_says_how_to_get_them(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(run)]) == 2
    assert "tracing.file: true has them written" in capfd.readouterr().err
    assert not (run / "trace.json").exists()
