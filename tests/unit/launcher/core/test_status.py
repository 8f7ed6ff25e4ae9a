"""`grpo status` of a run directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from areal_launcher.core.status import status
from areal_launcher.run_files import RunLock
from support.local_runs import append, line


def test_a_run_that_has_just_started_has_a_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").touch()
    lock = RunLock(tmp_path)
    assert status(tmp_path) == 0
    lock.release()


def test_a_running_run_shows_its_metrics_and_servers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").touch()
    append(tmp_path / "stats.jsonl", line(3))
    server = {"name": "server-0", "address": "127.0.0.1:9", "state": "ready\x1b[2J", "restarts": 2}
    (tmp_path / "local.json").write_text(json.dumps({"servers": [server]}))
    lock = RunLock(tmp_path)
    assert status(tmp_path) == 0
    lock.release()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("running (process ")
    assert "step 3" in first
    assert second == "server-0  127.0.0.1:9  ready  restarts 2"


def test_an_interrupted_run_says_how_to_continue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").touch()
    assert status(tmp_path) == 0
    assert "run the same command again to continue it" in capsys.readouterr().out
