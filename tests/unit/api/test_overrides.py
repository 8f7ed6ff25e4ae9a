"""The type of a key decides how the text of its override is read."""

from __future__ import annotations

import contextlib
import math
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_api.config import GRPOConfig
from areal_api.errors import ConfigError
from areal_api.experiment import ExperimentSpec
from areal_api.keys import fields, type_of
from areal_api.overrides import parse_override


def value(written: str, annotation: Any) -> Any:
    return parse_override(f"key={written}").value(annotation)


@pytest.mark.parametrize("written", ["001", "1e5", "1_000", "true", "no", "1:30", "2026-01-01", "0x10", "[a]", "{a: b}",
                                     "a: b", "#x", "x # y", "- a", "&a", "*a", "!x", "%", "@", "`", " padded ", "a=b",
                                     "\\boxed{}", "'", '"', "it's", "${actor.path}", "ü"])  # fmt: skip
@pytest.mark.parametrize("annotation", [str, str | None, Literal["a"]])
def test_text_is_taken_literally(written: str, annotation: Any) -> None:
    assert value(written, annotation) == written


def test_quotes_around_all_of_a_text_are_removed() -> None:
    assert value("'null'", str) == "null"
    assert value('"a\\nb"', str) == "a\nb"
    assert value("'a' and 'b'", str) == "'a' and 'b'"


def test_nothing_is_the_empty_text_or_null_where_the_key_allows_it() -> None:
    assert value("", str) == ""
    assert value("", str | None) is None
    assert value("null", str | None) is None
    assert value("", int | None) is None
    assert value("", list[str]) is None


@pytest.mark.parametrize(
    ("written", "annotation", "expected"),
    [
        ("010", int, 10),
        ("1_000", int, 1000),
        ("-3", int, -3),
        ("1:30", int, "1:30"),
        ("0x10", int, "0x10"),
        ("true", int, "true"),
        ("1e-5", float, 1e-5),
        ("1e5", float, 1e5),
        (".5", float, 0.5),
        ("inf", float, "inf"),
        ("True", bool, True),
        ("false", bool, False),
        ("1", bool, "1"),
        ("${seed}", int, "${seed}"),
    ],
)
def test_numbers_are_decimal_and_what_is_none_is_left_to_the_model(
    written: str, annotation: Any, expected: Any
) -> None:
    result = value(written, annotation)
    assert (result, type(result)) == (expected, type(expected))


def test_items_of_lists_and_sections_follow_their_own_types() -> None:
    assert value("[001, 'a b', true, null]", list[str]) == ["001", "a b", "true", None]
    assert value("[010, 1]", list[int]) == [10, 1]
    assert value("{zone: 001}", dict[str, str]) == {"zone": "001"}
    section = type_of(GRPOConfig, "gconfig")
    assert value("{n_samples: 04, stop: [1e5], no_such: 1e5}", section) == {
        "n_samples": 4,
        "stop": ["1e5"],
        "no_such": 1e5,
    }


def test_bounded_items_are_read_by_their_type() -> None:
    assert value("001", type_of(ExperimentSpec, "servers.nodeSelector.zone")) == "001"
    assert value("{zone: 001}", type_of(ExperimentSpec, "servers.nodeSelector")) == {"zone": "001"}


def test_free_form_values_are_yaml() -> None:
    assert value("[1, {a: true, b: '1', c: 1e-5, d: 2026-01-01}]", Any) == [
        1,
        {"a": True, "b": "1", "c": 1e-5, "d": "2026-01-01"},
    ]


def test_a_value_may_contain_an_equals_sign() -> None:
    override = parse_override("+sglang.extra=a=b")
    assert (override.key, override.value(Any), override.added) == ("sglang.extra", "a=b", True)


TYPES = [type_of(model, key) for model in (GRPOConfig, ExperimentSpec) for key, _, _ in fields(model)]
YAML_LIKE = st.text("ab01.-+e_:{}[]&*!'\"#,| \n${}~\\", max_size=20)


@given(YAML_LIKE | st.text(max_size=20), st.sampled_from([*TYPES, Any]))
def test_any_text_is_a_value_or_a_configuration_error(written: str, annotation: Any) -> None:
    with contextlib.suppress(ConfigError):
        value(written, annotation)


@given(st.integers(-(10**12), 10**12))
def test_every_whole_number_is_read_as_itself(number: int) -> None:
    assert value(str(number), int) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_is_read_as_itself(number: float) -> None:
    assert math.isclose(value(repr(number), float), number, rel_tol=0)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_every_text_without_quotes_around_it_is_read_as_itself(text: str) -> None:
    if text[:1] not in ("'", '"') and text not in ("null", "Null", "NULL", "~"):
        assert value(text, str) == text
