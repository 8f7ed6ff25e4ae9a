"""TRL's GRPOTrainer in a separate environment."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from benchmarks.learning_results import Record
from benchmarks.peer import PeerTask, install, run_script

TRL = "trl==1.16.*"
SCRIPT = Path(__file__).with_name("trl_grpo.py")


def train(task: PeerTask, work: Path) -> Record:
    """Train with TRL; raises ``PeerError`` if it cannot be installed or fails."""
    # The same library versions on both sides.
    same = [f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "transformers")]
    python = install("trl-env", [TRL, *same])
    result = work / "trl.json"
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(task).items()}
    # A single process does everything, so it uses all cores.
    threads = {"OMP_NUM_THREADS": str(os.cpu_count())}
    run_script(python, SCRIPT, json.dumps(settings), str(result), work=work, environment=threads)
    record = json.loads(result.read_text())
    return Record(record["seconds"], record["rewards"])
