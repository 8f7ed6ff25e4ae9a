"""The standard streams, and the console that commands print to.

A terminal that cannot show a character, a closed pipe or a vanished terminal must not turn a successful run into a
failed one.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from typing import Any, TextIO, cast

from rich.console import Console

from areal_launcher.terminal_text import printable

PLAIN_WIDTH = 160
ASCII = {"→": "->", "…": "...", "≤": "<=", "≥": ">=", "×": "x", "–": "-", "—": "-", "“": '"', "”": '"', "’": "'"}
ERROR_HANDLER = "areal-ascii"


def to_ascii(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: substitutes characters that the stream's encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(ASCII.get(character, "?") for character in error.object[error.start : error.end]), error.end


def prepare_standard_streams() -> None:
    """Make standard streams usable: open closed ones on /dev/null, and never fail on an unencodable character.

    Descriptors 0 to 2 must be open: otherwise the next file that is opened would receive what is printed.
    """
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            break
        os.set_inheritable(descriptor, True)
    codecs.register_error(ERROR_HANDLER, to_ascii)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            raw = io.FileIO(descriptor, "w", closefd=False)
            setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors=ERROR_HANDLER))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERROR_HANDLER)


class TolerantStream:
    """A text stream whose reader may go away: writing to it then does nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.broken = False

    def write(self, text: str) -> int:
        """Write, unless the stream has failed before."""
        if not self.broken:
            try:
                return self._stream.write(text)
            except (OSError, ValueError):  # EPIPE, EIO of a vanished terminal, ENOSPC; ValueError if closed
                self._give_up()
        return len(text)

    def flush(self) -> None:
        """Flush, unless the stream has failed before."""
        if not self.broken:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._give_up()

    def _give_up(self) -> None:
        self.broken = True
        discard_output(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def discard_output(stream: TextIO) -> None:
    """Redirect a failed stream to /dev/null, so that flushing its buffer at exit does not fail again."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class SafeConsole(Console):
    """A console that prints strings without the escape sequences and control characters they contain."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Like ``Console.print``."""
        super().print(*(printable(item) if isinstance(item, str) else item for item in objects), **options)


def console_for(*, stderr: bool = False) -> Console:
    """A console for standard output or error; wide enough for paths if it is not a terminal."""
    stream = cast(TextIO, TolerantStream(sys.stderr if stderr else sys.stdout))
    console = SafeConsole(file=stream, stderr=stderr, highlight=False)
    if console.is_terminal:
        return console
    return SafeConsole(file=stream, stderr=stderr, highlight=False, width=PLAIN_WIDTH)
