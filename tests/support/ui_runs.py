"""Run directories for the page of `grpo ui`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from areal_api import names
from support.local_runs import append, line


def make_run(root: Path, name: str, *, steps: int = 3, summary: dict[str, Any] | None = None, **extra: float) -> Path:
    """A run with ``steps`` steps whose reward grows from 0 to 1."""
    run = root / name
    run.mkdir(parents=True)
    names.config_file(run).write_text(f"experiment_name: {name}\n")
    append(
        names.stats_file(run),
        *[
            line(step, **{"task_reward/avg": step / steps, "total_steps": float(steps)}, **extra)
            for step in range(1, steps + 1)
        ],
    )
    if summary is not None:
        names.summary_file(run).write_text(json.dumps(summary))
    return run
