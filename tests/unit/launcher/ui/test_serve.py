"""`grpo ui` on the command line."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from areal_launcher import cli
from areal_launcher.ui import serve
from support.ui_runs import make_run

DEADLINE_S = 60


def test_it_prints_an_address_that_works_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    make_run(tmp_path, "tiny/first")
    command = [sys.executable, "-m", "areal_launcher.cli", "ui", str(tmp_path), "--port", str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = next(text for text in process.stdout if text.startswith("http")).strip()
        with httpx.Client(follow_redirects=True, trust_env=False) as client:
            assert "grpo runs" in client.get(address).text
            [row] = client.get(address.split("?")[0] + "api/runs").json()
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0
    assert row["name"] == "tiny/first"
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", address)


def test_a_port_in_use_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with listening() as port:
        assert cli.main(["ui", str(tmp_path), "--port", str(port)]) == 2
    assert f"--port {port}: Address already in use" in capsys.readouterr().err


def test_a_missing_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ui", str(tmp_path / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_an_address_of_another_machine_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ui", str(tmp_path), "--host", "192.0.2.1"]) == 2
    assert "--host 192.0.2.1" in capsys.readouterr().err


def test_without_a_port_a_free_one_replaces_one_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as port:
        monkeypatch.setattr(serve, "DEFAULT_PORT", port)
        with serve.listen("127.0.0.1", None) as listener:
            assert listener.getsockname()[1] != port


@contextlib.contextmanager
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_other_places_are_refused_with_the_alternative(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ui", "--on", "slurm"]) == 2
    assert "leave out --on slurm" in capsys.readouterr().err
    assert cli.main(["ui", str(tmp_path), "--on", "kubernetes"]) == 2
    assert "is a directory, and --on kubernetes shows experiments" in capsys.readouterr().err
