"""`grpo logs` of a run directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_launcher import cli
from areal_launcher.core import logs
from areal_launcher.core.logs import LogReader


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs" / "trainer.log"


@settings(deadline=None, max_examples=60)
@given(content=st.binary(max_size=300), added=st.binary(max_size=100), count=st.integers(0, 5))
def test_any_bytes_are_printable_lines_and_each_is_read_once(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, added: bytes, count: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "x.log"
    path.write_bytes(content)
    reader = LogReader(path)
    first = reader.last_lines(count)
    assert len(first) == min(count, content.count(b"\n"))
    with path.open("ab") as file:
        file.write(added)
    later = reader.new_lines()
    assert len(later) == (content + added).count(b"\n") - content.count(b"\n")
    assert not any(set(line) & {"\x1b", "\n", "\r"} for line in [*first, *later])


def test_a_huge_log_is_read_from_its_end(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with log.open("wb") as file:
        file.truncate(10**11)
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast but one\nlast\n")
    assert cli.main(["logs", str(log.parents[1]), "-n", "2"]) == 0
    assert capsys.readouterr().out == "last but one\nlast\n"


def test_zero_lines_are_none_and_a_negative_number_is_refused(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.write_text("a\nb\n")
    assert cli.main(["logs", str(log.parents[1]), "-n", "0"]) == 0
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit):
        cli.main(["logs", str(log.parents[1]), "-n", "-5"])
    assert "-5 is not a number of lines; give 0 or more" in capsys.readouterr().err


def test_the_trainers_logs_are_those_of_all_its_nodes(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("trainer", "trainer-1", "server-0"):
        (log.parent / f"{name}.log").write_text(f"line of {name}\n")
    assert cli.main(["logs", str(log.parents[1]), "--component", "trainer"]) == 0
    assert capsys.readouterr().out == "trainer | line of trainer\ntrainer-1 | line of trainer-1\n"


def test_logs_of_servers_that_are_added_are_followed(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_server(seconds: float) -> None:
        added = log.parent / "server-1.log"
        if added.exists():
            raise KeyboardInterrupt
        added.write_text("ready\n")

    log.write_text("step 1\n")
    monkeypatch.setattr(logs.time, "sleep", add_server)
    assert cli.main(["logs", str(log.parents[1]), "-f"]) == 0
    assert capsys.readouterr().out == "step 1\nserver-1 | ready\n"


def test_a_truncated_log_is_read_again_from_the_start(log: Path) -> None:
    log.write_text("old line\n")
    reader = LogReader(log)
    assert reader.last_lines(10) == ["old line"]
    log.write_text("new\n")
    assert reader.new_lines() == ["new"]
    log.unlink()
    assert reader.new_lines() == []


def test_a_line_without_an_end_is_printed_in_pieces(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_READ_BYTES", 10)
    log.write_text("x" * 25)
    reader = LogReader(log)
    reader.last_lines(0)
    with log.open("a") as file:
        file.write("y" * 20)
    assert reader.new_lines() == ["y" * 10]


def test_escape_sequences_in_a_log_do_not_reach_the_terminal(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.write_text("\x1b]0;owned\x07\x1b[2Jstep 1\x1b[1A\n")
    assert cli.main(["logs", str(log.parents[1])]) == 0
    assert capsys.readouterr().out == "step 1\n"


def test_a_fifo_instead_of_a_log_does_not_block(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(log)
    assert cli.main(["logs", str(log.parents[1])]) == 2
    assert "is not a regular file" in capsys.readouterr().err


@pytest.mark.parametrize("component", ["agents", "tools"])
def test_components_that_only_a_cluster_has_are_refused(
    component: str, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.write_text("step 1\n")
    assert cli.main(["logs", str(log.parents[1]), "--component", component]) == 2
    assert f"--component {component}: only runs on Kubernetes have {component}" in capsys.readouterr().err
