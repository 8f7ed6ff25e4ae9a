"""Filling the shared cache of models, with a hub that cannot be reached."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMIT = "a" * 40


def prefetch(folder: Path, *models: str) -> subprocess.CompletedProcess[str]:
    """Run the program of the init container."""
    return subprocess.run(
        [sys.executable, "-m", "areal_server.prefetch", str(folder), *models],
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_model_in_the_cache_needs_no_hub(tmp_path: Path) -> None:
    model = tmp_path / "models--team--model"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    (model / "snapshots" / COMMIT).mkdir(parents=True)
    (model / "snapshots" / COMMIT / "config.json").write_text("{}")
    done = prefetch(tmp_path, "team/model")
    assert done.returncode == 0, done.stderr


def test_a_hub_that_cannot_be_reached_is_reported_in_one_line_and_tried_again(tmp_path: Path) -> None:
    done = prefetch(tmp_path, "team/missing")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("OSError: servers.modelCache: team/missing cannot be downloaded")


def test_a_local_model_is_not_asked_for(tmp_path: Path) -> None:
    assert prefetch(tmp_path, "/a/model", str(tmp_path)).returncode == 0
