"""Limits on experiments: depth, counts and lengths, without recursion."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_api.areal_config.tree import set_in
from areal_api.bounds import MAX_DEPTH, MAX_ENTRIES, MAX_INTEGER, MAX_ITEMS, MAX_TEXT, problem_of_size, problem_of_value
from areal_api.errors import ConfigError
from areal_api.load import parse_experiment
from hack.testbed.experiment_case import Case, nested

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50),
    lambda below: st.lists(below, max_size=5) | st.dictionaries(st.text(max_size=20), below, max_size=5),
    max_leaves=30,
)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (nested(100_000), "nested more than"),
        ([[[[]]]] * 100_000, "more than 20000 values"),
        ({str(number): 1 for number in range(30_000)}, "more than 20000 values"),
        (["x" * 300_000], "characters of text"),
        ({"x" * 300_000: 1}, "characters of text"),
        (nested(MAX_DEPTH), None),
        ({}, None),
    ],
)
def test_the_size_of_an_experiment_is_bounded(data: Any, problem: str | None) -> None:
    found = problem_of_size(data)
    assert (found is None) if problem is None else (found is not None and problem in found)


@pytest.mark.parametrize(
    ("value", "refused"),
    [
        ("x" * MAX_TEXT, False),
        ("x" * (MAX_TEXT + 1), True),
        ([1] * (MAX_ITEMS + 1), True),
        (["x" * (MAX_TEXT + 1)], True),
        ("a\x00b", True),
        (["a", "\x00"], True),
        ({"a\x00": "b"}, True),
        ("a\nb\tc", False),
        ({str(number): 1 for number in range(MAX_ENTRIES + 1)}, True),
        ({"a": "x" * (MAX_TEXT + 1)}, True),
        (MAX_INTEGER, False),
        (-MAX_INTEGER - 1, True),
        (10**400, True),
        (1.5, False),
    ],
)
def test_the_value_of_a_key_is_bounded(value: Any, refused: bool) -> None:
    assert (problem_of_value(value) is not None) == refused


@pytest.mark.parametrize("place", ["servers.affinity", "servers.args", "trainer.tolerations", "config.workflow.kwargs"])
def test_deep_nesting_is_refused_without_recursion(place: str) -> None:
    data = Case("", {f"spec.{place}": None}).experiment()
    set_in(data, f"spec.{place}", nested(5_000))
    with pytest.raises(ConfigError, match="nested more than"):
        parse_experiment(data, source="x")


def test_many_long_unknown_keys_are_refused_quickly() -> None:
    started = time.monotonic()
    data = Case("", {"spec.servers": {f"replica{number:05d}{'s' * 2000}": 1 for number in range(100)}}).experiment()
    with pytest.raises(ConfigError, match="unknown key"):
        parse_experiment(data, source="x")
    assert time.monotonic() - started < 5.0


@settings(deadline=None)
@given(st.sampled_from(["affinity", "tolerations", "resources", "volumes", "env", "nodeSelector", "args"]), JSON)
def test_any_json_in_a_pod_field_is_accepted_or_refused_with_an_explanation(key: str, value: Any) -> None:
    data = Case("", {f"spec.servers.{key}": value}).experiment()
    with suppress(ConfigError):
        assert parse_experiment(data, source="x").name == "case"
