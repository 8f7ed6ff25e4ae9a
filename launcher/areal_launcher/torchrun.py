"""What torchrun writes when a rank fails: its own report hides the rank's last words and its exit status."""

from __future__ import annotations

import re
from collections.abc import Sequence

FAILURE = re.compile(r"torch/distributed/elastic.*failed \(exitcode: (-?\d+)\)")


def without_torchrun(lines: Sequence[str]) -> list[str]:
    """The lines before torchrun's own report that a rank failed: the rank's last words stand there."""
    for place, line in enumerate(lines):
        if FAILURE.search(line):
            return list(lines[:place])
    return list(lines)


def status_of_rank(lines: Sequence[str]) -> int | None:
    """Exit status of the rank that failed, which torchrun reports but does not pass on; None when it reports none."""
    found = next((match for line in lines if (match := FAILURE.search(line))), None)
    if found is None:
        return None
    status = int(found[1])
    return 128 - status if status < 0 else status
