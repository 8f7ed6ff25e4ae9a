"""Environments of other trainers are created once per set of requirements, and their failures keep the reason."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import peer
from benchmarks.peer import PeerError, install, run_script

UV = """#!/bin/sh
echo "$@" >> {calls}
[ "$1" = pip ] && cat >> {calls} && echo >> {calls}
mkdir -p {folder}/.bin/areal-env
{end}
"""


def fake_uv(folder: Path, *, end: str = "exit 0") -> Path:
    """A uv that records its arguments and input in the returned file."""
    uv, calls = folder / ".bin" / "uv" / "bin" / "uv", folder / "calls"
    uv.parent.mkdir(parents=True, exist_ok=True)
    uv.write_text(UV.format(calls=calls, folder=folder, end=end))
    uv.chmod(0o755)
    calls.touch()
    return calls


def test_overrides_replace_what_a_requirement_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "REPOSITORY", tmp_path)
    calls = fake_uv(tmp_path)
    python = install("areal-env", ["areal==1.0.4"], overrides=["torch==2.14.1"])
    assert python == tmp_path / ".bin" / "areal-env" / "bin" / "python"
    assert calls.read_text().rstrip().endswith("areal==1.0.4 --overrides -\ntorch==2.14.1")


def test_an_environment_is_created_again_only_for_other_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "REPOSITORY", tmp_path)
    calls = fake_uv(tmp_path)
    for _ in range(2):
        install("areal-env", ["areal==1.0.4"], overrides=["torch==2.14.1"])
    assert calls.read_text().count("venv --quiet") == 1
    install("areal-env", ["areal==1.0.4"], overrides=["torch==2.15.0"])
    assert calls.read_text().count("venv --quiet") == 2


def test_a_failed_installation_gives_the_last_line_of_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "REPOSITORY", tmp_path)
    fake_uv(tmp_path, end="echo no such version >&2; exit 1")
    with pytest.raises(PeerError, match=r"areal==9 cannot be installed: no such version"):
        install("areal-env", ["areal==9"])


def test_a_failed_script_gives_the_end_of_its_output(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("import os; raise SystemExit(os.environ['WHY'])")
    with pytest.raises(PeerError, match=r"train\.py exited with status 1: no server"):
        run_script(Path(sys.executable), script, work=tmp_path, environment={"WHY": "no server"})


START_A_CHILD = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
pathlib.Path("child").write_text(str(child.pid))
print("a child runs", flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(int(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("seconds", "status", "limit_s", "error"),
    [("0", "0", 60.0, None), ("0", "3", 60.0, "status 3: a child runs"), ("300", "0", 3.0, "ran for 3 s: a child")],
)
def test_no_process_of_a_script_outlives_it(
    tmp_path: Path, seconds: str, status: str, limit_s: float, error: str | None
) -> None:
    script = tmp_path / "peer_script.py"
    script.write_text(START_A_CHILD)

    def run() -> None:
        run_script(Path(sys.executable), script, seconds, status, work=tmp_path, environment={}, limit_s=limit_s)

    if error is None:
        run()
    else:
        with pytest.raises(PeerError, match=error):
            run()
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
