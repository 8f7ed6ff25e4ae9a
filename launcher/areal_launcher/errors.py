"""The error that ends a `grpo` command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class RunError(Exception):
    """A run that cannot continue, with the last lines of the log that explains it.

    ``status`` is the exit status of ``grpo``.
    """

    def __init__(self, message: str, *, log: Path | None = None, lines: Sequence[str] = (), status: int = 1) -> None:
        super().__init__(message)
        self.log = log
        self.lines = list(lines)
        self.status = status
