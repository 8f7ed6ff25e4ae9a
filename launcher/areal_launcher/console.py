"""The console that commands print to."""

from __future__ import annotations

from rich.console import Console

PLAIN_WIDTH = 160


def console_for(*, stderr: bool = False) -> Console:
    """A console for standard output or error; wide enough for paths if it is not a terminal."""
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=PLAIN_WIDTH)
