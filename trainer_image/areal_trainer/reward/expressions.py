r"""Compares expressions that are not numbers with math-verify, at a bounded cost.

math-verify parses LaTeX into SymPy, where a short text such as ``9^{9^{9}}`` can take unbounded time. Expressions
therefore have to pass ``is_bounded`` first, and a comparison stops after ``MAX_CALLS`` function calls.
"""

from __future__ import annotations

import functools
import logging
import re
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

MAX_LENGTH = 200  # characters
MAX_DEPTH = 6  # nested brackets
MAX_INTEGER_DIGITS = 12
MAX_EXPONENT = 64  # the product of all exponents
MAX_CALLS = 300_000  # of Python functions, less than 1 s; typical comparisons make 5,000 to 100,000

_COMMANDS = frozenset(
    r"""\frac \dfrac \tfrac \cfrac \sqrt \pi \cdot \times \div \left \right \pm \cup \cap \infty \le \leq \ge \geq \lt
    \gt \in \ldots \sin \cos \tan \cot \sec \csc \log \ln \theta \alpha \beta \gamma \lambda \circ
    \$ \% \, \! \; \: \{ \} \( \) \[ \]""".split()  # noqa: SIM905  shorter than a list
)
# math-verify and SymPy import, compile and fill caches when they first see a kind of expression. That must not count
# against MAX_CALLS: the first of its kind would make up to 420,000 calls and be wrong, later ones right.
_KINDS = (
    (r"\sqrt{2}", "1"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \frac{\pi}{2})"),
    (r"(-\infty,2)\cup[3,4]", r"(-\infty, 2) \cup [3, 4]"),
    (r"\{2,1\}", r"\{1, 2\}"),
    (r"x^2+\frac{1}{2}", r"\frac12 + x^2"),
    (r"y = 3+2x", "y=2x+3"),
    (r"\frac{\sqrt{2}}{2}", r"\sin(\pi/4)"),
    (r"\log(10)", r"\ln 10"),
    (r"x\leq 3", r"x \le 3"),
    ("4i+3", "3+4i"),
)
_COMMAND = re.compile(r"\\(?:[A-Za-z]+|.)", re.DOTALL)
_ALLOWED = re.compile(r"[0-9A-Za-z+\-*/^_=<>()\[\]{}|,.$ ]*")
_MALFORMED = re.compile(r"\.\.|[-+/] ?[-+*/]|[-+*/=^_] ?$|^ ?[*/=^_]")
_WORD = re.compile(r"[A-Za-z]{3,}")
_INTEGER = re.compile(r"[0-9]+")
_EXPONENT = re.compile(
    r"(?:\^|\*\*) ?(?:([0-9A-Za-z])|\{ ?-? ?([0-9]{1,3}|[A-Za-z]) ?\}|\{ ?-? ?\\frac ?\{?[0-9]\}? ?\{?[0-9]\}? ?\})"
)


class _TooManyCalls(BaseException):
    """Not an ``Exception``, so that SymPy's handlers do not swallow it."""


def expressions_equal(answer: str, reference: str) -> bool:
    """Whether both are equal by math-verify; False for text outside ``is_bounded``. Never raises."""
    if not (is_bounded(answer) and is_bounded(reference)):
        return False
    equal = _math_verify()
    try:
        return _with_call_limit(lambda: equal(reference, answer))
    except (_TooManyCalls, RecursionError):
        return False


def is_bounded(text: str) -> bool:
    """Whether ``text`` is a short expression without words, deep nesting and large powers."""
    if not 0 < len(text) <= MAX_LENGTH or _depth(text) > MAX_DEPTH:
        return False
    if any(command not in _COMMANDS for command in _COMMAND.findall(text)):
        return False
    bare = _COMMAND.sub(" ", text)
    if not _ALLOWED.fullmatch(bare) or _WORD.search(bare) or _MALFORMED.search(bare):
        return False
    if any(len(digits) > MAX_INTEGER_DIGITS for digits in _INTEGER.findall(text)):
        return False
    return _exponents_are_small(text)


def _exponents_are_small(text: str) -> bool:
    exponents = [match.groups() for match in _EXPONENT.finditer(text)]
    if len(exponents) != text.count("^") + text.count("**"):
        return False  # a nested or unusual exponent
    product = 1
    for groups in exponents:
        written = next((group for group in groups if group), "2")
        product *= max(1, int(written)) if written.isdigit() else 8
    return product <= MAX_EXPONENT


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
    return deepest if depth == 0 else MAX_DEPTH + 1  # unbalanced


def _with_call_limit(work: Callable[[], bool]) -> bool:
    """Run ``work`` and raise ``_TooManyCalls`` after ``MAX_CALLS`` function calls; works in any thread."""
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:  # None: no events for lines
        nonlocal calls
        calls += 1
        if calls > MAX_CALLS:
            raise _TooManyCalls

    previous = sys.gettrace()
    sys.settrace(count)
    try:
        return work()
    finally:
        sys.settrace(previous)


@functools.cache
def _math_verify() -> Callable[[str, str], bool]:
    from math_verify import parse, verify

    # No deadlines inside math-verify: they use SIGALRM, which works in main threads only.
    for module in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(module).setLevel(logging.ERROR)  # each would warn once that its timeout is disabled

    def equal(reference: str, answer: str) -> bool:
        gold, target = (
            parse(f"${text.strip().strip('$')}$", parsing_timeout=None, raise_on_error=False)
            for text in (reference, answer)
        )
        return bool(verify(gold, target, float_rounding=10, timeout_seconds=None, raise_on_error=False))

    for first, second in _KINDS:
        equal(first, second)
    return equal
