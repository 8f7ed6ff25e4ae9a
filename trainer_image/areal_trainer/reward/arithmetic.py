r"""Evaluates arithmetic in final answers exactly, such as ``8 \cdot 9``, ``\frac{1+2}{4}`` and ``\sqrt{4}``.

    expression = ["-"] term {("+" | "-") term}
    term       = factor {"*" factor} ["/" factor]
    factor     = base ["^" exponent]
    base       = number | "(" expression ")" | \frac{expression}{expression} | \sqrt{expression}

Roots must be rational. Text, depth, digits and exponents are limited, so the cost is bounded.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from areal_trainer.reward.numbers import normalize

MAX_LENGTH = 200  # characters
MAX_DEPTH = 8
MAX_EXPONENT = 16
MAX_BITS = 2048  # of a numerator or denominator

_TOKEN = re.compile(
    r"\s*((?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+|\\frac|\\sqrt|\\div|[-+*/^(){}])"
)


class _NotArithmetic(Exception):
    pass


def evaluate(text: str) -> Fraction | None:
    """The value of an arithmetic expression; None for all other text. Never raises."""
    rest = normalize(text)
    if not 0 < len(rest) <= MAX_LENGTH:
        return None
    tokens: list[str] = []
    position = 0
    while position < len(rest):
        match = _TOKEN.match(rest, position)
        if match is None:
            return None
        tokens.append("/" if match[1] == r"\div" else match[1])
        position = match.end()
    try:
        parser = _Parser(tokens)
        value = parser.expression(MAX_DEPTH)
        parser.expect(None)
        return value
    except (_NotArithmetic, ZeroDivisionError):
        return None


class _Parser:
    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._next = 0

    @property
    def token(self) -> str | None:
        """The next token; None at the end."""
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def take(self, *expected: str) -> bool:
        """Consume the next token if it is one of ``expected``."""
        if self.token not in expected:
            return False
        self._next += 1
        return True

    def expect(self, expected: str | None) -> None:
        """Consume ``expected``; None is the end."""
        if self.token != expected:
            raise _NotArithmetic
        self._next += 1

    def expression(self, depth: int) -> Fraction:
        """The value of an expression of at most ``depth`` nested brackets."""
        if depth == 0:
            raise _NotArithmetic
        value = -self._term(depth) if self.take("-") else self._term(depth)
        while self.token in ("+", "-"):
            value = _checked(value - self._term(depth) if self.take("-") else self._add(value, depth))
        return value

    def _add(self, value: Fraction, depth: int) -> Fraction:
        self.expect("+")
        return value + self._term(depth)

    def _term(self, depth: int) -> Fraction:
        value = self._factor(depth)
        while self.take("*"):
            value = _checked(value * self._factor(depth))
        if self.take("/"):  # only one, since 1/2/3 is ambiguous
            value = _checked(value / self._factor(depth))
        return value

    def _factor(self, depth: int) -> Fraction:
        value = self._base(depth)
        if not self.take("^"):
            return value
        exponent = self._group("{", "}", depth - 1) if self.token == "{" else self._number()
        if exponent.denominator != 1 or abs(exponent) > MAX_EXPONENT:
            raise _NotArithmetic
        return _checked(value ** int(exponent))

    def _base(self, depth: int) -> Fraction:
        if self.token == "(":
            return self._group("(", ")", depth - 1)
        if self.take(r"\frac"):
            top = self._group("{", "}", depth - 1)
            return _checked(top / self._group("{", "}", depth - 1))
        if self.take(r"\sqrt"):
            return _root(self._group("{", "}", depth - 1) if self.token == "{" else self._number())
        return self._number()

    def _group(self, opening: str, closing: str, depth: int) -> Fraction:
        self.expect(opening)
        value = self.expression(depth)
        self.expect(closing)
        return value

    def _number(self) -> Fraction:
        token = self.token
        if token is None or not (token[0].isdigit() or token[0] == "."):
            raise _NotArithmetic
        self._next += 1
        return _checked(Fraction(token.replace(",", "")))


def _checked(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise _NotArithmetic
    return value


def _root(value: Fraction) -> Fraction:
    top, bottom = math.isqrt(max(0, value.numerator)), math.isqrt(value.denominator)
    root = Fraction(top, bottom)
    if root * root != value:
        raise _NotArithmetic
    return root
