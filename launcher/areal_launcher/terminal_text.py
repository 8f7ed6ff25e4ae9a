"""Makes text from logs, files and clusters safe to print: no escape sequences, no control characters.

Terminals interpret such sequences: they can hide lines, change the title or clipboard, or send input.
"""

from __future__ import annotations

import re

# ECMA-48: CSI sequences, strings (OSC, DCS, SOS, PM, APC), other escapes. Each alternative is linear in its length.
_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-Z\\-~]"
)
# C0 and C1 except tab and newline, and the characters that reorder or break lines in Unicode.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
MAX_LINE_LENGTH = 16 * 1024


def printable(text: str) -> str:
    """``text`` without terminal escape sequences; other control characters become U+FFFD. Keeps tab and newline."""
    return _CONTROL.sub("\ufffd", _ESCAPE_SEQUENCE.sub("", text))


def printable_line(text: str) -> str:
    """One log line as a terminal finally shows it, printable and at most ``MAX_LINE_LENGTH`` characters long.

    Progress bars overwrite themselves with carriage returns; only the last version counts.
    """
    final = text.rstrip("\r\n").rpartition("\r")[2]
    line = printable(final[: MAX_LINE_LENGTH + 1]).replace("\n", "\ufffd")
    if len(line) <= MAX_LINE_LENGTH:
        return line
    return f"{line[:MAX_LINE_LENGTH]}… ({len(final)} characters)"
