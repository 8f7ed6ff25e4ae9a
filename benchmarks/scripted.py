"""The tests' scripted server as a separate process for the duration of a benchmark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]


@contextmanager
def scripted_server(**script: Any) -> Iterator[str]:
    """Yields its host:port. ``script``: fields of ``support.scripted_answers.Script``."""
    paths = [str(REPOSITORY / "tests"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, "-m", "support.scripted_server", "--script", json.dumps(script)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("listening on "):
            raise RuntimeError(f"the scripted server printed {line!r} instead of its address")
        yield line.split()[-1]
    finally:
        process.kill()
        process.wait()


def fixed_answer(input_ids: list[int], params: dict[str, Any], index: int) -> list[int]:
    """``max_new_tokens`` tokens that the server need not compute."""
    return list(range(2, 2 + int(params["max_new_tokens"])))
