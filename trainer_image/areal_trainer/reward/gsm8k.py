r"""GSM8K's reward: 1 if the final answer of a completion equals the reference answer, else 0.

``docs/grading.md`` documents what counts as the final answer and when two answers are equal. The cost of a call is
bounded for any completion, and an ambiguous answer is wrong. Reward processes import this module, so it imports only
the standard library; math-verify is loaded when an expression must be compared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from areal_trainer.reward.arithmetic import evaluate
from areal_trainer.reward.expressions import expressions_equal
from areal_trainer.reward.numbers import MAX_LENGTH, normalize, parse_number

WINDOW = 65_536  # characters at the end of a completion in which the final answer is searched
STATEMENT = 400  # characters of a statement after "answer is" or "####"

_BOX = re.compile(r"\\f?boxed[ \t]{0,8}\{|\\fbox[ \t]{0,8}\{|\\.|[{}]", re.DOTALL)
_ANSWER_IS = re.compile(r"\banswer[ \t]{1,4}is\b(?:[ \t]{0,4}:)?", re.IGNORECASE)
_HASHES = re.compile(r"####")
_SENTENCE_END = re.compile(r"(?:(?<!\.)\.|[!?;])(?:\s|$)|\n")
_COMMA = re.compile(r",\s")
_NUMBER_IN_TEXT = re.compile(r"[-+\u2212]?\$?(?:[0-9][0-9,]{0,30}(?:\.[0-9]{1,30})?|\.[0-9]{1,30})")
_QUALIFIED = re.compile(r"[0-9]|\b(?:or|not|but|maybe|perhaps|either|if)\b", re.IGNORECASE)


def gsm8k_reward_fn(
    prompt: str,
    completions: str,
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    answer: Any,
    **kwargs: Any,
) -> float:
    """1.0 if the final answer in ``completions`` equals that in ``answer``, else 0.0.

    ``answer`` is a reference solution that ends in ``#### N`` or in a box, or the bare answer. Raises ``ValueError`` if
    it is empty.
    """
    reference = reference_answer(answer)
    found = extract_answer(completions)
    return float(found is not None and answers_equal(found, reference))


def canonical_answer(completion: str) -> str | None:
    """The final answer of a completion in a form that is the same for equal numbers; it votes in maj@k."""
    found = extract_answer(completion)
    if found is None or len(found) > MAX_LENGTH:
        return None
    number = parse_number(found)
    return str(number.value) if number is not None else normalize(found) or None


gsm8k_reward_fn.final_answer = canonical_answer  # type: ignore[attr-defined]


def reference_answer(answer: Any) -> str:
    """The final answer of a reference solution, or all of it if nothing marks a final answer."""
    text = "" if answer is None else str(answer).strip()
    marked = _after_hashes(text)
    reference = (marked[1] if marked else None) or last_boxed(text) or text
    if not reference:
        raise ValueError(f"the reference answer is {answer!r}; it must contain an answer such as '#### 72'")
    return reference


def extract_answer(completion: str, data_name: str = "math") -> str | None:
    r"""The final answer of a completion, or None.

    The last ``\boxed{…}`` takes precedence; otherwise the last of "the answer is …" and ``#### …``. ``data_name``
    exists for compatibility with AReaL's signature and has no effect.
    """
    text = completion[-WINDOW:]
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    statements = [statement for statement in (_after_answer_is(text), _after_hashes(text)) if statement is not None]
    return max(statements)[1] if statements else None


def extract_solution(solution_str: str, method: Literal["strict", "flexible"] = "strict") -> str | None:
    """The number after the last ``####`` without separators, currency and unit, or all of the text there; else None.

    ``flexible`` returns the last number of a text that contains no ``####``.
    """
    marked = _after_hashes(solution_str[-WINDOW:])
    if marked is not None:
        number = parse_number(marked[1])
        return number.plain if number else marked[1]
    if method == "strict":
        return None
    numbers = _NUMBER_IN_TEXT.findall(solution_str[-WINDOW:])
    return re.sub(r"[,$]", "", numbers[-1]).replace("\u2212", "-") if numbers else None


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{…}`` or ``\fbox{…}`` that is closed and not empty. Linear in ``text``."""
    text = text[-WINDOW:]
    open_braces: list[tuple[int, bool]] = []  # start of the content, whether it is a box
    last = (-1, -1)  # start and end of the content
    for match in _BOX.finditer(text):
        token = match.group()
        if token == "}" and open_braces:
            start, is_box = open_braces.pop()
            if is_box and start > last[0] and not text[start : min(match.start(), start + 64)].isspace():
                last = (start, match.start()) if match.start() > start else last
        elif token[-1] == "{" and token != r"\{":
            open_braces.append((match.end(), token != "{"))
    return text[last[0] : last[1]].strip() or None if last[0] >= 0 else None


def answers_equal(answer: str, reference: str) -> bool:
    """Whether two final answers are equal: as text, as exact numbers, or as expressions. Never raises."""
    if answer.strip() == reference.strip():
        return True
    if max(len(answer), len(reference)) > MAX_LENGTH:
        return False
    left, right = parse_number(answer), parse_number(reference)
    if left is not None and right is not None:
        return left.equals(right)
    values = [number.value if number else evaluate(text) for number, text in ((left, answer), (right, reference))]
    if None not in values:
        return values[0] == values[1]
    if values != [None, None]:
        return False
    return _same_text(normalize(answer), normalize(reference)) or expressions_equal(answer, reference)


def _same_text(left: str, right: str) -> bool:
    """Equal text, ignoring case in words of three or more letters."""
    if left == right:
        return left != ""
    return (
        all(re.fullmatch(r"[^\W\d_]{3}[^\d_]*", text) for text in (left, right)) and left.casefold() == right.casefold()
    )


def _after_hashes(text: str) -> tuple[int, str] | None:
    """Position and text of the last nonempty line behind ``####``."""
    return _last_statement(text, _HASHES, lambda line: line.partition("\n")[0])


def _after_answer_is(text: str) -> tuple[int, str] | None:
    """Position and text of the last statement behind "answer is"."""
    return _last_statement(text, _ANSWER_IS, _sentence)


def _last_statement(text: str, mark: re.Pattern[str], cut: Any) -> tuple[int, str] | None:
    last = None
    for match in mark.finditer(text):
        statement = cut(text[match.end() : match.end() + STATEMENT].lstrip(" \t" if mark is _HASHES else None)).strip()
        last = (match.start(), statement) if statement else last
    return last


def _sentence(text: str) -> str:
    """The first sentence of ``text``, up to a comma if nothing behind that qualifies the answer."""
    end = _SENTENCE_END.search(text)
    sentence = text[: end.start()] if end else text
    comma = _COMMA.search(sentence)
    return sentence[: comma.start()] if comma and not _QUALIFIED.search(sentence, comma.end()) else sentence
