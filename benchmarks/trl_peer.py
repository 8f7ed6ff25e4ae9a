"""TRL's GRPOTrainer in a separate environment."""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

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
    # A single process does everything, so it uses all cores.
    threads = {"OMP_NUM_THREADS": str(os.cpu_count())}
    arguments = (str(task.model), str(task.data), json.dumps(configuration(task)), str(result))
    run_script(python, SCRIPT, *arguments, work=work, environment=threads)
    record = json.loads(result.read_text())
    return Record(record["seconds"], record["rewards"])


def configuration(task: PeerTask) -> dict[str, Any]:
    """Arguments of ``GRPOConfig``: 32 prompts × 8 samples of at most 20 tokens per step, one update per batch."""
    return {
        "per_device_train_batch_size": 256,
        "num_generations": 8,
        "max_completion_length": 20,
        "max_steps": task.steps,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "constant",
        "adam_beta1": 0.9,
        "adam_beta2": 0.99,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "epsilon": task.epsilon,
        "beta": 0.0,
        "temperature": 1.0,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": task.seed,
    }
