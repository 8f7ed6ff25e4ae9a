"""Files of other programs: bounded, never blocking, clear errors."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_launcher.bounded_files import DamagedFileError, number, parse_json, read_object, read_tail

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "summary.json"


def test_a_missing_file_is_none(path: Path) -> None:
    assert read_object(path) is None


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_a_damaged_file(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "x.json"
    path.write_bytes(data)
    with contextlib.suppress(DamagedFileError):
        assert isinstance(read_object(path), dict)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "1" * 5000, '{"a": 1e999999}', "\ufeff{}", "nul"])
def test_hostile_json_is_never_a_crash(path: Path, text: str) -> None:
    path.write_text(text)
    with contextlib.suppress(DamagedFileError):
        assert isinstance(read_object(path), dict)


def test_damage_is_reported_with_the_file(path: Path) -> None:
    path.write_text("nul")
    with pytest.raises(DamagedFileError, match=r"summary\.json is not valid JSON .*; remove it"):
        read_object(path)


def test_a_fifo_is_refused_without_waiting_for_a_writer(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(DamagedFileError, match="is not a regular file"):
        read_object(path)


@pytest.mark.parametrize("kind", ["directory", "loop", "device"])
def test_anything_else_than_a_file_is_refused(path: Path, kind: str) -> None:
    if kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(path.name if kind == "loop" else "/dev/zero")
    with pytest.raises(DamagedFileError, match=r"summary\.json"):
        read_object(path)


def test_a_huge_file_is_refused_by_its_size(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(DamagedFileError, match="has more than 4194304 bytes"):
        read_object(path)
    assert read_tail(path, 10) == bytes(10)


@settings(deadline=None)
@given(json_values)
def test_a_number_is_finite_or_none(value: Any) -> None:
    converted = number(value)
    assert converted is None or math.isfinite(converted)
    assert number(True) is None
    assert number(10**400) is None


@settings(deadline=None)
@given(json_values)
def test_valid_json_is_parsed(value: Any) -> None:
    text = json.dumps(value)
    assert json.dumps(parse_json(text.encode())) == text
