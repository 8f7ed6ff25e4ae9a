"""How a program that prepares something for a run ends when it cannot: one line, for people and for the operator."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from areal_api import names

MAX_LENGTH = 4000  # characters; Kubernetes keeps 4096 bytes of a termination message
USER_ERROR, MAY_PASS = 2, 1  # exit statuses


def failed(error: BaseException, *, final: bool) -> int:
    """Print ``error`` as one line, write it to the termination log if there is one, and return the exit status.

    ``final``: another attempt would end the same way.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    line = f"{'error' if final else 'OSError'}: {text}"[:MAX_LENGTH]
    print(line, file=sys.stderr, flush=True)
    log = os.environ.get(names.TERMINATION_LOG)
    if log:
        Path(log).write_text(line, encoding="utf-8")
    return USER_ERROR if final else MAY_PASS
