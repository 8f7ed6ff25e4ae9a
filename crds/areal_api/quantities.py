"""Kubernetes quantities: the complete grammar, exact values, and the form in which the API server stores them.

Source: k8s.io/apimachinery/pkg/api/resource/quantity.go.
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal, localcontext
from typing import Annotated

from pydantic import AfterValidator, Field

MAX_LENGTH = 32
MAX_VALUE = 2**63 - 1  # the API server silently lowers anything above

# A number that is not negative, with a binary suffix, a decimal suffix or an exponent. The same text is the CRD's
# pattern, so it uses only what RE2 knows.
PATTERN = r"^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]{1,2})?$"

_PARTS = re.compile(r"\+?(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?P<suffix>\D.*)?", re.ASCII | re.DOTALL)
_MATCH = re.compile(PATTERN.removesuffix("$") + r"\Z")
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_PRECISION = 150  # more digits than MAX_LENGTH characters and a two-digit exponent can need: arithmetic stays exact


def parse_quantity(text: str | int | float) -> Decimal:
    """The exact value of a quantity such as ``10Gi``, ``500m`` or ``1e3``.

    Raises ``ValueError`` naming the value for a text outside the grammar, a negative number, more than ``MAX_LENGTH``
    characters, or a value above 2⁶³ − 1.
    """
    value, _ = _parse(text)
    return value


def quantity_bytes(text: str | int | float) -> int:
    """A quantity of bytes as a whole number, rounded up as Kubernetes does: ``1.3Gi`` is 1395864372."""
    return int(parse_quantity(text).to_integral_value(rounding=ROUND_CEILING))


def canonical_quantity(text: str | int | float) -> str:
    """The quantity as the API server stores it: ``1.5Gi`` is ``1536Mi``, ``1.3Gi`` is ``1395864371200m``.

    No digit is lost down to 10⁻⁹ (smaller parts are rounded up), the number is whole, and its suffix is the largest
    possible one of the family that was written (binary, decimal or exponent).
    """
    value, suffix = _parse(text)
    with localcontext() as context:
        context.prec = _PRECISION
        value = value.quantize(Decimal("1e-9"), rounding=ROUND_CEILING)
        if suffix in _BINARY and value >= 1024 and value == value.to_integral_value():
            whole = int(value)
            fitting = [name for name, power in _BINARY.items() if whole % 2**power == 0]
            return f"{whole >> _BINARY[fitting[-1]]}{fitting[-1]}" if fitting else str(whole)
        if not value:
            return "0"
        power = max(power for power in _DECIMAL.values() if value.scaleb(-power) == int(value.scaleb(-power)))
        number = int(value.scaleb(-power))
    if suffix[:1] in ("e", "E") and suffix != "E" and suffix not in _BINARY:
        return f"{number}e{power}" if power else str(number)
    return f"{number}{next(name for name, of in _DECIMAL.items() if of == power)}"


def _parse(text: str | int | float) -> tuple[Decimal, str]:
    """Value and suffix."""
    written = str(text)
    if len(written) > MAX_LENGTH:
        raise ValueError(
            f"{written[:MAX_LENGTH]}… is longer than {MAX_LENGTH} characters; write a quantity such as 10Gi"
        )
    if not _MATCH.match(written):
        raise ValueError(
            f"{written!r} is not a Kubernetes quantity; write a number with a suffix, such as 10Gi or 500m"
        )
    parts = _PARTS.fullmatch(written)
    assert parts is not None
    suffix = parts["suffix"] or ""
    with localcontext() as context:
        context.prec = _PRECISION
        number = Decimal(parts["number"])
        if suffix in _BINARY:
            value = number * 2 ** _BINARY[suffix]
        else:
            value = number.scaleb(_DECIMAL[suffix] if suffix in _DECIMAL else int(suffix[1:]))
    if value > MAX_VALUE:
        raise ValueError(f"{written!r} is above {MAX_VALUE} (2^63 - 1); lower it")
    return value, suffix


def _check_size(text: str) -> str:
    if not parse_quantity(text):
        raise ValueError(f"{text!r} is 0; give a size above 0, such as 10Gi")
    return text


Size = Annotated[str, Field(max_length=MAX_LENGTH, pattern=PATTERN), AfterValidator(_check_size)]
"""A field with a size in bytes: any Kubernetes quantity above 0."""
