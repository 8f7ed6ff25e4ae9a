"""Writes trained samples as JSON lines for inspection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec

from areal_trainer.trajectory import Trajectory


def dump_samples(trajectories: Iterable[Trajectory], directory: Path, *, step: int) -> Path:
    """Write ``step<N>.jsonl``, one line per sample. A step repeated after a resume overwrites its file."""
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"step{step}.jsonl"
    seen: Counter[int] = Counter()
    lines = []
    for trajectory in trajectories:
        lines.append(
            msgspec.json.encode(
                {
                    "task_id": trajectory.task_id or str(trajectory.group),
                    "sample_idx": seen[trajectory.group],
                    "seqlen": len(trajectory),
                    "prompt_len": trajectory.prompt_len,
                    "head_version": trajectory.head_version,
                    "tail_version": trajectory.tail_version,
                    "reward": trajectory.reward,
                    "prompt": trajectory.prompt,
                    "completion": trajectory.completion,
                }
            )
        )
        seen[trajectory.group] += 1
    target.write_bytes(b"".join(line + b"\n" for line in lines))
    return target
