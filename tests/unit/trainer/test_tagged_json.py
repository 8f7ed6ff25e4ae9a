"""JSON that keeps the types of rows."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from areal_trainer.tagged_json import dumps, loads

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.dates(),
    st.datetimes().map(lambda value: value.replace(fold=0)),
    st.times().map(lambda value: value.replace(fold=0)),
    st.timedeltas(),
    st.decimals(allow_nan=False),
)
KEYS = st.one_of(st.text(), st.just("$type"), st.integers(), st.none())
VALUES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner), st.dictionaries(KEYS, inner), st.lists(inner).map(tuple))
)


def same(first: Any, second: Any) -> bool:
    """Equality that distinguishes True from 1, and tuples from lists."""
    return repr(first) == repr(second)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(VALUES)
def test_values_keep_their_types(value: Any) -> None:
    assert same(loads(dumps(value, what="row")), value)


@pytest.mark.parametrize("value", [np.float32(1.5), np.int64(-3), np.bool_(True), np.str_("ü")])
def test_numpy_scalars_keep_their_types(value: Any) -> None:
    decoded = loads(dumps(value, what="row"))
    assert type(decoded) is type(value)
    assert decoded == value


@pytest.mark.parametrize("value", [np.arange(6.0).reshape(2, 3).T, np.array(["a", "bc"]), np.empty((0, 2), np.int8)])
def test_numpy_arrays_keep_type_and_shape(value: Any) -> None:
    decoded = loads(dumps(value, what="row"))
    assert decoded.dtype == value.dtype
    assert np.array_equal(decoded, value)
    decoded[...] = decoded  # writable, like the original


def test_other_types_are_refused_with_their_path() -> None:
    with pytest.raises(ValueError, match=r"row 7\.images\[1\] has type builtins\.object.*recover\.mode=disabled"):
        dumps({"images": ["a", object()]}, what="row 7")


def test_deep_nesting_is_refused() -> None:
    value: list[Any] = []
    for _ in range(10_000):
        value = [value]
    with pytest.raises(ValueError, match="nested more than 100 levels"):
        dumps(value, what="row")


def test_object_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has type numpy\.ndarray"):
        dumps(np.array([object()]), what="row")


def test_decimals_and_dates_are_not_floats_and_texts() -> None:
    row = {"price": decimal.Decimal("0.10"), "day": datetime.date(2026, 2, 3)}
    assert loads(dumps(row, what="row")) == row
