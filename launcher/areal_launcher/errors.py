"""The error that ends a `grpo` command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class RunError(Exception):
    """A run that cannot go on: what happened, and the last lines of the log that tells why."""

    def __init__(self, message: str, *, log: Path | None = None, lines: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.log = log
        self.lines = list(lines)
