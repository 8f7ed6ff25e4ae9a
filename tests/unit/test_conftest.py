"""The hooks of tests/conftest.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HOOKS = Path(__file__).parents[1] / "conftest.py"
FIRST = """
import pytest
def test_passes(): pass
def test_fails(): assert 1 == 2
def test_cannot_run(): pytest.skip("no such device")
"""
SECOND = "def test_also_passes(): pass\n"


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", str(folder), "-p", "no:cacheprovider"]
    return subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_a_summary_includes_the_saved_reports_of_an_earlier_parallel_session(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(HOOKS.read_text().replace("pytest_plugins", "_unused"))
    (tmp_path / "test_first.py").write_text(FIRST)
    (tmp_path / "test_second.py").write_text(SECOND)
    first = run_pytest(tmp_path, "test_first.py", "--numprocesses=2", "--save-reports=reports.json")
    assert first.returncode == 1, first.stdout + first.stderr
    second = run_pytest(tmp_path, "test_second.py", "-ra", "--durations=10", "--add-reports=reports.json")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "SKIPPED [1] test_first.py:5: no such device" in second.stdout
    assert "FAILED test_first.py::test_fails" in second.stdout
    assert "1 failed, 2 passed, 1 skipped" in second.stdout.splitlines()[-1]
