"""Checks before a local run starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_launcher import cli


def test_cuda_without_a_gpu_gives_the_fix(
    experiment_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cli.main(["run", str(experiment_path), "trainer.device=cuda"]) == 2
    assert "no GPU is visible here; set trainer.device=cpu to run on CPUs" in capfd.readouterr().err


def test_too_little_disk_space_reports_both_sizes(
    experiment_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("areal_launcher.local.checks.MIN_FREE_BYTES", 2**60)
    assert cli.main(["run", str(experiment_path)]) == 2
    assert "GiB free, the run needs 1073741824.0" in capfd.readouterr().err
