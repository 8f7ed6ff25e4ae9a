"""Writes and checks generated files that are committed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def check_or_write(arguments: Sequence[str], *, path: Path, text: str, module: str) -> int:
    """Exit status of a generator: ``--write`` writes ``path``, ``--check`` fails if it differs from ``text``."""
    if list(arguments) == ["--write"]:
        path.write_text(text, encoding="utf-8")
        return 0
    if list(arguments) != ["--check"]:
        print(f"usage: python -m {module} --write | --check", file=sys.stderr)
        return 2
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return 0
    print(f"{path.name} is out of date; run: python -m {module} --write", file=sys.stderr)
    return 1
