"""Graceful termination: on SIGTERM or SIGINT the run finishes its step and writes a recovery checkpoint."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType

logger = logging.getLogger(__name__)


class StopSignal:
    """Set by SIGTERM and SIGINT. Repeated signals, which torchrun may send, have no effect."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._wake: Callable[[], None] | None = None

    def install(self) -> None:
        """Install the handlers of both signals. Call on the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def wakes(self, wake: Callable[[], None]) -> None:
        """Also call ``wake``, which ends a wait, on a signal; immediately if one has arrived already."""
        self._wake = wake
        if self.requested():
            wake()

    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self._event.is_set()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._event.is_set():
            logger.info("%s: finishing the step, then writing a recovery checkpoint", signal.Signals(number).name)
        self._event.set()
        if self._wake is not None:
            self._wake()
