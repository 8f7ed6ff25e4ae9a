"""Runs in a pod that mounts a run's volume: ``python3 -c SOURCE DIRECTORY``. Standard library only.

Writes the newest directory below DIRECTORY that contains config.json to standard output, as a tar archive.
"""

from __future__ import annotations

import os
import sys
import tarfile

NO_CHECKPOINT = 3


def newest(directory: str) -> str | None:
    """Path of the last checkpoint written; None if there is none."""
    entries = [
        entry
        for entry in os.scandir(directory)
        if not entry.name.startswith(".") and os.path.isfile(os.path.join(entry.path, "config.json"))
    ]
    return max(entries, key=lambda entry: entry.stat().st_mtime).path if entries else None


def main(arguments: list[str]) -> int:
    """Send the checkpoint."""
    directory = arguments[0]
    path = newest(directory) if os.path.isdir(directory) else None
    if path is None:
        print(f"{directory} contains no checkpoint", file=sys.stderr)
        return NO_CHECKPOINT
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
        tar.add(path, arcname=os.path.basename(path))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
