"""YAML as configurations are written in it, within bounds."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from areal_api.yaml_text import json_as_yaml, load_yaml


def test_exponents_are_numbers_and_dates_and_times_are_text() -> None:
    assert load_yaml("[1e-5, 1E5, 1.5, .5, 2026-01-01, 1:30:00, 12, true, null, '1e5']") == [
        1e-5, 1e5, 1.5, 0.5, "2026-01-01", "1:30:00", 12, True, None, "1e5",
    ]  # fmt: skip


def test_a_duplicate_key_is_refused() -> None:
    with pytest.raises(yaml.YAMLError, match="found duplicate key a"):
        load_yaml("a: 1\na: 2\n")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{key}: &{key} [{', '.join([f'*{below}'] * 9)}]\n" for below, key in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("text", [BOMB, "[" * 100_000, "a: &a [*a]", "- " * 50_000, "x" * 5_000_000])
def test_a_document_above_the_bounds_is_refused_at_once(text: str) -> None:
    began = time.perf_counter()
    with pytest.raises((ValueError, yaml.YAMLError)):
        load_yaml(text)
    assert time.perf_counter() - began < 2


@given(st.text("ab01.-+e_:{}[]&*!'\"#,|> \n?%", max_size=40))
def test_any_text_is_a_document_or_a_documented_error(text: str) -> None:
    with contextlib.suppress(ValueError, yaml.YAMLError):
        load_yaml(text)


def test_json_for_the_api_server_is_yaml_with_emoji_and_control_characters() -> None:
    value = {"emoji": "😀", "text": 'a\x85\x07"\\ud83d\u2028é\ufeff', "\U000e7a96": [1, None, 1e-300]}
    text = json_as_yaml(value)
    assert "😀" in text
    assert yaml.safe_load(text.replace("1e-300", "1.0e-300")) == value
    assert json.loads(text) == value
    assert json.loads(json_as_yaml("\ud83d")) == "\ufffd"
