"""Logs of pods."""

from __future__ import annotations

import pytest

from areal_launcher.terminal_text import printable_line


@pytest.mark.parametrize(
    ("line", "seen"), [("step 1", "step 1"), ("10%\r50%\r100%", "100%"), ("100%\r", "100%"), ("", "")]
)
def test_a_progress_bar_is_printed_as_its_final_line(line: str, seen: str) -> None:
    assert printable_line(line) == seen
