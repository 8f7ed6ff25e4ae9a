"""`grpo ui` as a process."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Served:
    """A served folder of runs. ``expected_problems``: what the browser's console may say in this test."""

    runs: Path
    address: str
    process: subprocess.Popen[str]
    expected_problems: list[str] = field(default_factory=list)


@contextlib.contextmanager
def served(runs: Path) -> Iterator[Served]:
    """Serve ``runs`` on a free port."""
    runs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "areal_launcher.cli", "ui", str(runs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = next(text for text in process.stdout if text.startswith("http")).strip()
            yield Served(runs, address, process)
        finally:
            process.kill()
