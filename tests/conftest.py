"""What every test may take for granted."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    # Shells have what they start in the background ignore it, and that is handed down to processes that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
