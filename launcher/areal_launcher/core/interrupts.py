"""Signals that end a run."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Termination signals received by this process, in order."""

    def __init__(self) -> None:
        self.received: list[int] = []

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received.append(signum)

    @contextlib.contextmanager
    def caught(self) -> Iterator[Interrupts]:
        """Record SIGINT, SIGTERM and SIGHUP instead of terminating.

        A signal that the caller ignores stays ignored: SIGHUP under nohup, SIGINT of a background job.
        """
        caught = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        previous = {number: signal.signal(number, self._note) for number in caught}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
