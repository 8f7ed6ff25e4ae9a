"""Runs that need more GPUs than this machine has."""

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
