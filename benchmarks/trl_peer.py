"""TRL's GRPOTrainer on the peers' task, in a separate environment that is created on first use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks.scripted import REPOSITORY

TRL = "trl==1.16.*"
ENVIRONMENT = REPOSITORY / ".bin" / "trl-env"
SCRIPT = Path(__file__).with_name("trl_grpo.py")


def trl_run(model: Path, data: Path, *, steps: int, work: Path) -> tuple[list[float], list[float]]:
    """Run TRL; returns seconds and mean reward of each step."""
    _install()
    result = work / "trl.json"
    argv = [str(ENVIRONMENT / "bin" / "python"), str(SCRIPT), str(model), str(data), str(result), str(steps)]
    # A single process does everything, so it uses all cores.
    environment = os.environ | {"OMP_NUM_THREADS": str(os.cpu_count()), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(argv, cwd=work, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)} exited with status {done.returncode}:\n{done.stderr[-3000:]}")
    record = json.loads(result.read_text())
    return record["seconds"], record["rewards"]


def _install() -> None:
    if (ENVIRONMENT / ".ready").exists():
        return
    local = REPOSITORY / ".bin" / "uv" / "bin" / "uv"
    uv = str(local) if local.exists() else shutil.which("uv")
    if uv is None:
        raise ValueError(f"--trl needs uv to install {TRL}: run make setup, or add uv to PATH")
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, ENVIRONMENT], check=True)
    # Use the same library versions on both sides.
    same = [f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "transformers")]
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", ENVIRONMENT / "bin" / "python", TRL, *same],
        check=True,
    )
    (ENVIRONMENT / ".ready").touch()
