"""Files printed to the log of a pod."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from areal_launcher.cluster.fetch_results import extract_files
from areal_launcher.cluster.in_pod import print_files


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    (tmp_path / "stats.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "summary.json").write_text("{}")
    return tmp_path


def read(folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", "-c", inspect.getsource(print_files), str(folder), *names]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_existing_files_are_printed(volume: Path) -> None:
    printed = read(volume, "config.yaml", "stats.jsonl", "summary.json").stdout
    log = f"a warning of the image\n{printed}more\n"
    assert extract_files(print_files.decoded(log)) == {"stats.jsonl": b'{"step": 1}\n', "summary.json": b"{}"}


def test_a_truncated_or_damaged_log_is_refused(volume: Path) -> None:
    log = read(volume, "stats.jsonl").stdout
    for broken, problem in (
        (log[:-80], "incomplete"),
        (log.replace("A", "B", 1), "damaged"),
        ("", "contains no files"),
    ):
        with pytest.raises(ValueError, match=problem):
            print_files.decoded(broken)


def test_files_too_large_for_a_log_are_refused_with_both_sizes(
    volume: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(print_files, "MAX_ENCODED_BYTES", 100)
    assert print_files.main([str(volume), "stats.jsonl"]) == print_files.TOO_LARGE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "bytes, more than 100" in printed.err
    monkeypatch.setattr(print_files, "MAX_PLAIN_BYTES", 5)
    assert print_files.main([str(volume), "stats.jsonl"]) == print_files.TOO_LARGE
