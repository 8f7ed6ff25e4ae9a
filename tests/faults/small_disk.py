"""A small separate file system that can be filled and freed."""

from __future__ import annotations

import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SIZE = "420m"  # slightly more than a run of the tiny experiment requires to start
PIECES = (1 << 20, 4 << 10)


class SmallDisk:
    """A tmpfs mounted at ``at``."""

    def __init__(self, at: Path) -> None:
        self.at = at
        self._ballast = at / "ballast"

    def __enter__(self) -> SmallDisk:
        self.at.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(self.at)], check=True)
        return self

    def __exit__(self, *exc_info: object) -> None:
        # Lazily: a leaked process, which another check reports, may still hold a file open.
        subprocess.run(["umount", "--lazy", str(self.at)], check=True)

    def fill(self) -> None:
        """Use all remaining space."""
        with self._ballast.open("ab", buffering=0) as file:
            for piece in PIECES:
                try:
                    while file.write(bytes(piece)) == piece:
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        """Free the space that ``fill`` used."""
        self._ballast.unlink(missing_ok=True)


@cache
def unavailable_reason() -> str | None:
    """Why a small disk cannot be mounted here, or None if it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    with tempfile.TemporaryDirectory() as at:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", at]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"mount: {done.stderr.strip()}"
        subprocess.run(["umount", at], check=True)
    return None
