"""`grpo` on terminals, pipes and environments that are not what it would like."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from areal_launcher.console import SafeConsole, TolerantStream
from areal_launcher.display import LiveDisplay, PlainDisplay, display_for
from support.local_runs import append, line

GRPO = [sys.executable, "-m", "areal_launcher.cli"]


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").touch()
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "trainer.log").write_text("reward 0.1 → 0.2 …\n" * 5000)
    append(tmp_path / "stats.jsonl", line(1), line(2))
    return tmp_path


def grpo(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(
        [*GRPO, *map(str, arguments)],
        env=env,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "latin-1"},
        {"TERM": "dumb", "COLUMNS": "1"},
        {"COLUMNS": "0", "LINES": "x", "FORCE_COLOR": "1"},
        {"HOME": "/nonexistent", "TMPDIR": "/nonexistent"},
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_no_terminal_or_locale_turns_success_into_failure(run_directory: Path, environment: dict[str, str]) -> None:
    for command in (["status", run_directory], ["logs", run_directory, "-n", "3"]):
        done = grpo(*command, **environment)
        assert (done.returncode, done.stderr) == (0, "")


def test_an_ascii_terminal_shows_a_readable_arrow(run_directory: Path) -> None:
    done = grpo("status", run_directory, PYTHONIOENCODING="ascii")
    assert "0.100 -> 0.200" in done.stdout


@pytest.mark.parametrize("command", ["status", "logs", "crd"])
def test_a_reader_that_goes_away_is_not_an_error(run_directory: Path, command: str) -> None:
    arguments = [] if command == "crd" else [str(run_directory)]
    arguments += ["-n", "5000"] if command == "logs" else []
    process = subprocess.Popen([*GRPO, command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(300) == 0


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_not_an_error(run_directory: Path, closed: str) -> None:
    command = f'exec "$0" -m areal_launcher.cli plot "$1" {closed}'
    done = subprocess.run(["sh", "-c", command, sys.executable, run_directory], timeout=300, check=False)
    assert done.returncode == 0
    assert (run_directory / "reward.png").read_bytes().startswith(b"\x89PNG")


def test_a_vanished_terminal_does_not_stop_what_is_printed_to_it() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        console = SafeConsole(file=TolerantStream(terminal))  # type: ignore[arg-type]
        assert console.is_terminal
        os.close(ours)
        with display_for(console) as display:
            for step in range(20):
                display.phase(f"phase {step}")
                display.message(f"message {step}")


@pytest.mark.parametrize(
    ("environment", "kind"),
    [({"TERM": "xterm"}, LiveDisplay), ({"TERM": "dumb"}, PlainDisplay), ({"TERM": "unknown"}, PlainDisplay)],
)
def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], kind: type
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal, os.fdopen(ours):
        assert isinstance(display_for(SafeConsole(file=terminal)), kind)


def test_a_pipe_is_no_terminal_although_colour_is_forced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with (tmp_path / "output").open("w") as file:
        assert isinstance(display_for(SafeConsole(file=file)), PlainDisplay)


def test_strings_are_printed_without_escape_sequences(tmp_path: Path) -> None:
    with (tmp_path / "output").open("w") as file:
        SafeConsole(file=file).print("\x1b]0;owned\x07text \x1b[2J", markup=False)
    assert (tmp_path / "output").read_text() == "text \n"
