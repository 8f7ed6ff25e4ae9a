"""GPUs of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from areal_launcher import cli
from areal_launcher.places.local import gpus


def test_cuda_without_a_gpu_gives_the_fix(
    experiment_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cli.main(["run", str(experiment_path), "trainer.device=cuda"]) == 2
    assert "no GPU is visible here; set trainer.device=cpu to run on CPUs" in capfd.readouterr().err


def test_a_driver_that_hangs_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setattr(gpus, "NVIDIA_SMI_TIMEOUT_S", 0.2)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ValueError, match="nvidia-smi did not answer within 0 s"):
        gpus.visible_gpus({})
