"""Which steps have files of samples."""

from __future__ import annotations

import os
from pathlib import Path

from areal_api.rollout_columns import step_of

MAX_STEPS = 1_000_000


def steps_in(directory: Path) -> list[int]:
    """The steps of the files in a directory, in order."""
    try:
        with os.scandir(directory) as files:
            found = (step_of(file.name) for _, file in zip(range(MAX_STEPS), files, strict=False))
            return sorted(step for step in found if step is not None)
    except OSError:
        return []
