"""JSON for recovery files: reading one executes nothing, unlike a pickle.

JSON's own types are written as they are. Other types that data sets commonly hold are written as ``{"$type": [name,
value]}``: tuples, bytes, dates and times, decimals, NumPy arrays and scalars, and dictionaries with keys that JSON does
not have.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

TAG = "$type"
MAX_DEPTH = 100


def dumps(value: Any, *, what: str) -> str:
    """Encode ``value``. Raises ``ValueError``, naming ``what`` and the path, for a type that cannot be encoded."""
    return json.dumps(_encode(value, what, 0))


def loads(text: str) -> Any:
    """Decode the result of ``dumps``. Raises ``ValueError`` for anything else."""
    try:
        return json.loads(text, object_hook=_decode)
    except (TypeError, KeyError, RecursionError, ArithmeticError) as error:
        raise ValueError(f"not the JSON of a recovery file: {type(error).__name__}: {error}") from error


def _encode(value: Any, path: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(
            f"{path} is nested more than {MAX_DEPTH} levels deep, which recovery checkpoints do not support"
        )
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [_encode(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        items = {key: _encode(item, f"{path}.{key}", depth + 1) for key, item in value.items()}
        if TAG not in items and all(type(key) is str for key in items):
            return items
        return {TAG: ["dict", [[_encode(key, path, depth + 1), item] for key, item in items.items()]]}
    if isinstance(value, tuple):
        return {TAG: ["tuple", [_encode(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]]}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufSU":
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {TAG: ["array", [value.dtype.str, list(value.shape), data]]}
    if isinstance(value, np.generic) and value.dtype.kind in "biufSU":
        return {TAG: ["scalar", [value.dtype.str, base64.b64encode(value.tobytes()).decode()]]}
    for name, (kind, encode, _) in _TYPES.items():
        if type(value) is kind:
            return {TAG: [name, encode(value)]}
    if isinstance(value, str):  # a subclass, such as an enumeration's member
        return str.__str__(value)
    type_name = f"{type(value).__module__}.{type(value).__qualname__}"
    raise ValueError(
        f"{path} has type {type_name}, which recovery checkpoints cannot store; convert it to text, numbers or lists "
        "in the dataset, or set recover.mode=disabled"
    )


def _decode(items: dict[str, Any]) -> Any:
    if items.keys() != {TAG}:
        return items
    name, value = items[TAG]
    if name == "dict":
        return dict(value)
    if name == "tuple":
        return tuple(value)
    if name == "array":
        dtype, shape, data = value
        return np.frombuffer(base64.b64decode(data), dtype=_plain_dtype(dtype)).reshape(shape).copy()
    if name == "scalar":
        dtype, data = value
        return np.frombuffer(base64.b64decode(data), dtype=_plain_dtype(dtype))[0]
    return _TYPES[name][2](value)


def _plain_dtype(name: str) -> np.dtype[Any]:
    dtype = np.dtype(str(name))
    if dtype.kind not in "biufSU":
        raise ValueError(f"arrays of type {name!r} are not supported in a recovery file")
    return dtype


_TYPES: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "bytes": (bytes, lambda value: base64.b64encode(value).decode(), base64.b64decode),
    "datetime": (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "time": (datetime.time, datetime.time.isoformat, datetime.time.fromisoformat),
    "timedelta": (
        datetime.timedelta,
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda value: datetime.timedelta(*value),
    ),
    "decimal": (decimal.Decimal, str, decimal.Decimal),
}
