"""Parses torchrun's failure report, which hides the failed rank's last log lines and its exit status."""

from __future__ import annotations

import re
from collections.abc import Sequence

FAILURE = re.compile(r"torch/distributed/elastic.*failed \(exitcode: (-?\d+)\)")


def strip_report(lines: Sequence[str]) -> list[str]:
    """The lines before torchrun's failure report; the failed rank's last lines are at their end."""
    for index, line in enumerate(lines):
        if FAILURE.search(line):
            return list(lines[:index])
    return list(lines)


def failed_rank_status(lines: Sequence[str]) -> int | None:
    """Exit status of the failed rank, which torchrun logs but does not return; None if the log has no report."""
    match = next((match for line in lines if (match := FAILURE.search(line))), None)
    if match is None:
        return None
    status = int(match[1])
    return 128 - status if status < 0 else status
