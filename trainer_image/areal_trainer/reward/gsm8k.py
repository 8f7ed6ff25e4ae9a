"""GSM8K's reward: 1 where the final answer of a completion equals the reference's, else 0.

The processes of the reward pool import this module, so it imports nothing heavy: math-verify only when text and numbers
do not decide.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal

HASHES = re.compile(r"####[ \t]*\$?[ \t]*([^\n]*)")
# The sentence after the phrase: to the end of the line, or to a full stop that ends a sentence (not that of 3.5).
ANSWER_IS = re.compile(r"answer\s+is\s*:?\s*(.+?)(?=\.?\s*(?:\n|$)|\.\s)", re.IGNORECASE)
NUMBER = re.compile(r"[-+]?\$?\s?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
EXACT = re.compile(r"([-+]?)(\d+(?:\.\d*)?|\.\d+)(?:/(\d+(?:\.\d*)?))?")
WRAPPED = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")
# What may stand in or around a number without changing it: currency, percent, LaTeX spaces, thousands separators.
ORNAMENT = re.compile(r"\\[,!;: ]|\{,\}|\\?[$%]|(?<=\d),(?=\d{3}(?!\d))|\\(?:left|right|displaystyle)\b|\s")


def gsm8k_reward_fn(
    prompt: str,
    completions: str,
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    answer: Any,
    **kwargs: Any,
) -> float:
    """1.0 where the final answer in ``completions`` equals that in ``answer``, else 0.0.

    ``answer`` is a reference solution that ends in ``#### N`` or in a box, or the bare answer; ``ValueError`` where it
    is empty.
    """
    reference = reference_answer(answer)
    found = extract_answer(completions)
    return float(found is not None and answers_equal(found, reference))


def reference_answer(answer: Any) -> str:
    """The final answer of a reference solution, or the whole of it where nothing marks one."""
    text = str(answer).strip()
    found = extract_solution(text, method="strict") or last_boxed(text) or text
    if not found or answer is None:
        raise ValueError(f"the reference answer is {answer!r}; it must hold one, as in '#### 72'")
    return found


def extract_answer(completion: str, data_name: str = "math") -> str | None:
    r"""The final answer of a completion, None without any.

    The last ``\boxed{…}``, else what "the answer is" says, else what follows ``####``. ``data_name`` is for
    AReaL's signature: every kind of data has the same marks.
    """
    boxed = last_boxed(completion)
    if boxed is not None:
        return boxed
    said: list[str] = ANSWER_IS.findall(completion)
    if said:
        numbers: list[str] = NUMBER.findall(said[-1])
        return numbers[0].strip() if len(numbers) == 1 and "\\" not in said[-1] else said[-1].strip()
    marked = [line.strip() for line in HASHES.findall(completion) if line.strip()]
    if not marked:
        return None
    number = NUMBER.search(marked[-1])
    return number.group().strip() if number else marked[-1]


def extract_solution(solution_str: str, method: Literal["strict", "flexible"] = "strict") -> str | None:
    """The number after the last ``####``, without thousands separators; None without any.

    ``flexible`` takes the last number of a text that has no ``####``.
    """
    marked = [line.strip() for line in HASHES.findall(solution_str) if line.strip()]
    if marked:
        number = NUMBER.search(marked[-1])
        return re.sub(r"[,$\s]", "", number.group()) if number else marked[-1]
    if method == "strict":
        return None
    numbers = NUMBER.findall(solution_str)
    return re.sub(r"[,$\s]", "", numbers[-1]) if numbers else None


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{…}`` that is closed and not empty, braces matched; ``\fbox`` counts too."""
    for begin in reversed([match.end() for match in re.finditer(r"\\f?boxed\s*\{|\\fbox\s*\{", text)]):
        depth = 1
        for end in range(begin, len(text)):
            if text[end] in "{}" and text[end - 1] != "\\":
                depth += 1 if text[end] == "{" else -1
            if depth == 0:
                content = text[begin:end].strip()
                if content:
                    return content
                break
    return None


def answers_equal(found: str, reference: str) -> bool:
    """As text, then as exact numbers, then symbolically by math-verify. Two numbers that differ are not equal."""
    if found.strip() == reference.strip():
        return True
    left, right = to_number(found), to_number(reference)
    if left is not None and right is not None:
        return left == right
    return _symbolically_equal(found, reference)


def to_number(text: str) -> Fraction | None:
    """The exact value of a number or a fraction of two: ``$1,200.50``, ``-3/4``, ``25%`` (25). None for all else."""
    plain = ORNAMENT.sub("", WRAPPED.sub("", text)).rstrip(".")
    match = EXACT.fullmatch(plain)
    if match is None:
        return None
    sign, numerator, denominator = match.groups()
    if denominator is not None and Fraction(denominator) == 0:
        return None
    value = Fraction(numerator) / Fraction(denominator or 1)
    return -value if sign == "-" else value


def _symbolically_equal(found: str, reference: str) -> bool:
    # Text without a digit or a command ("unknown") is no number, and math-verify takes its letters for variables.
    if to_number(reference) is not None and not re.search(r"[\d\\]", found):
        return False
    verify = _math_verify()
    return bool(verify(reference, found))


@functools.cache
def _math_verify() -> Any:
    from math_verify import parse, verify

    # Deadlines are the pool's: math-verify's own use SIGALRM, which works in a main thread alone, and not in C code.
    for module in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(module).setLevel(logging.ERROR)  # each would warn once that its deadline is off

    def equal(reference: str, found: str) -> bool:
        gold, target = (
            parse(f"${text.strip().strip('$')}$", parsing_timeout=None, raise_on_error=True)
            for text in (reference, found)
        )
        return bool(verify(gold, target, timeout_seconds=None, raise_on_error=True))

    return equal
