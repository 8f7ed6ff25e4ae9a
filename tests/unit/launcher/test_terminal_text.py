"""Text from strangers, made safe for a terminal."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from areal_launcher.terminal_text import MAX_LINE_LENGTH, printable, printable_line

pieces = st.sampled_from(["\x1b", "[", "]", "0;", "m", "\x9b", "\x07", "\x1b\\", "\r", "\n", "\t", "\u202e", "a", "é"])
hostile = st.lists(st.one_of(pieces, st.text(max_size=5)), max_size=40).map("".join)


@settings(deadline=None)
@given(hostile)
@example("\x1b]0;title\x07\x1b[2J\x1b[1;1Hall is well")
def test_no_control_character_reaches_the_terminal(text: str) -> None:
    shown = printable(text)
    assert not any(
        unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in shown if character not in "\t\n"
    )
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")
    assert printable(shown) == shown
    line = printable_line(text)
    assert "\n" not in line
    assert len(line) < MAX_LINE_LENGTH + 50


@pytest.mark.parametrize("piece", ["\x1b[", "\x1b]", "\x1b", "\x1b[0", "\x9d"])
def test_the_cost_is_linear(piece: str) -> None:
    started = time.process_time()
    assert "\x1b" not in printable(piece * 100_000)
    assert time.process_time() - started < 10


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"])))
def test_ordinary_text_is_unchanged(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]52;c;cm0gLXJm\x07x", "x"),
        ("a\x08b", "a\ufffdb"),
        ("\x1bcreset", "reset"),
    ],
)
def test_escape_sequences_are_removed(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("line", "seen"), [("step 1", "step 1"), ("10%\r50%\r100%", "100%"), ("100%\r", "100%"), ("", "")]
)
def test_a_progress_bar_is_printed_as_its_final_line(line: str, seen: str) -> None:
    assert printable_line(line) == seen


def test_a_very_long_line_is_cut_and_its_length_reported() -> None:
    assert printable_line("x" * 10**6).endswith("… (1000000 characters)")
