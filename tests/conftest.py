"""What every test may take for granted."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    # Shells have what they start in the background ignore it, which processes that tests interrupt would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
