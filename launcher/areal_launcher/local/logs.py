"""`grpo logs` of a run directory."""

from __future__ import annotations

import time
from pathlib import Path

from areal_api import names

FOLLOW_S = 0.2


def logs(directory: Path, *, component: str | None, process: str | None, lines: int, follow: bool) -> int:
    """Print the last lines of each log, and with ``follow`` the lines added later."""
    pattern = {None: "*.log", "trainer": "trainer.log", "servers": "server-*.log"}[component]
    paths = {path.stem: path for path in sorted(names.logs_dir(directory).glob(pattern))}
    if not paths:
        raise ValueError(f"{directory}: no logs here; give a run directory")
    if process is not None and process not in paths:
        raise ValueError(f"{process}: no such process; give one of {', '.join(paths)}")
    selected = [process] if process is not None else list(paths)
    offsets: dict[str, int] = {}
    try:
        while True:
            for name in selected:
                print_new_lines(name, paths[name], offsets, lines=lines, prefix=len(selected) > 1)
            if not follow:
                return 0
            time.sleep(FOLLOW_S)
    except KeyboardInterrupt:
        return 0


def print_new_lines(name: str, path: Path, offsets: dict[str, int], *, lines: int, prefix: bool) -> None:
    """Print complete lines added since the last call; on the first call, the last ``lines``."""
    with path.open("rb") as file:
        file.seek(offsets.get(name, 0))
        data = file.read()
    data = data[: data.rfind(b"\n") + 1]
    added = data.decode(errors="replace").splitlines()
    for line in added if name in offsets else added[-lines:]:
        print(f"{name} | {line}" if prefix else line, flush=True)
    offsets[name] = offsets.get(name, 0) + len(data)
