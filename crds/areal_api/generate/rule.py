"""A cross-field rule in CEL, and expressions that many rules share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """``expression`` must be true for the object at the dotted key ``at`` ("" is the whole object).

    ``at`` has no default: the API server evaluates rules on the default ``{}`` before it fills in nested defaults.
    """

    at: str
    expression: str
    message: str


def is_set(field: str) -> str:
    """Whether a field is neither absent nor null."""
    # dyn() allows the type checker to compare a nullable field with null.
    return f"has({field}) && dyn({field}) != null"
