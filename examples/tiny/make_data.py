"""Write the problems of the tiny example: `python examples/tiny/make_data.py` writes data/{train,test}.jsonl.

One JSON line per problem in GSM8K's format: `question`, and an `answer` that ends in `#### N`. The output is the same
on every machine and Python version: the only random source is `random.Random(seed).random()`, the one method whose
sequence Python guarantees.

A problem is a calculation (12 + 5 - 3) phrased as a story. Its numbers (12, 5, 3) alone assign it to training or test.
So no held-out problem occurs in training with other names, and numbers do not predict the operation (with 12 + 5 in
training and 12 - 5 held out, the model would learn "12 and 5 are added").
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

NAMES = ("Ann", "Ben", "Eva", "Ida", "Kim", "Leo", "Lou", "Max", "Mia", "Sam", "Tom", "Zoe")
THINGS = ("apples", "balls", "books", "cakes", "cards", "coins", "eggs", "keys", "kites", "pens", "shells", "stamps")
HOLDERS = ("bags", "boxes", "jars", "packs")
GAINS = ("buys", "finds", "gets", "wins")
LOSSES = ("drops", "loses", "sells", "gives away")
LARGEST_NUMBER = 59  # of any number in a problem or its solution: each is one token of the tiny tokenizer

DEFAULT_SEED = 20240607
TRAIN_PROBLEMS = 6144
TEST_PROBLEMS = 256
_TEST_SHARE = 0.1

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """A question and its solution steps `left op right = result`; the last result is the answer."""

    question: str
    steps: tuple[str, ...]

    @property
    def numbers(self) -> tuple[str, ...]:
        """The numbers of the question in order."""
        return tuple(re.findall(r"\d+", self.question))

    @property
    def held_out(self) -> bool:
        digest = hashlib.sha256(" ".join(self.numbers).encode()).digest()
        return int.from_bytes(digest[:4], "big") < _TEST_SHARE * 2**32

    @property
    def answer(self) -> str:
        result = self.steps[-1].split()[-1]
        return " ".join(f"{step}." for step in self.steps) + f"\n#### {result}"

    def json_line(self) -> str:
        return json.dumps({"question": self.question, "answer": self.answer}) + "\n"


class _PortableRandom:
    """Random draws that use only `random.Random.random()`."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        """An integer n with low ≤ n ≤ high."""
        return low + int(self._random.random() * (high - low + 1))

    def one_of(self, choices: Sequence[T]) -> T:
        return choices[self.integer(0, len(choices) - 1)]

    def two_of(self, choices: Sequence[T]) -> tuple[T, T]:
        first = self.integer(0, len(choices) - 1)
        second = (first + self.integer(1, len(choices) - 1)) % len(choices)
        return choices[first], choices[second]


def calculate(left: int, operation: str, right: int) -> int:
    if operation == "+":
        return left + right
    if operation == "-":
        return left - right
    if operation == "*":
        return left * right
    raise ValueError(f"unknown operation {operation!r}; use +, - or *")


def _solve(start: int, *operations: tuple[str, int]) -> tuple[str, ...] | None:
    """The steps from `start`; None if a result is outside 1…LARGEST_NUMBER."""
    steps: list[str] = []
    value = start
    for operation, operand in operations:
        result = calculate(value, operation, operand)
        if not 1 <= result <= LARGEST_NUMBER:
            return None
        steps.append(f"{value} {operation} {operand} = {result}")
        value = result
    return tuple(steps)


def _change(rng: _PortableRandom) -> tuple[str, str]:
    """A verb and its operation."""
    return (rng.one_of(GAINS), "+") if rng.integer(0, 1) else (rng.one_of(LOSSES), "-")


def _one_change(rng: _PortableRandom) -> tuple[str, tuple[str, ...] | None]:
    who, what = rng.one_of(NAMES), rng.one_of(THINGS)
    (verb, operation), start, operand = _change(rng), rng.integer(3, 20), rng.integer(2, 10)
    question = f"{who} has {start} {what}. {who} {verb} {operand}. How many {what} does {who} have now?"
    return question, _solve(start, (operation, operand))


def _two_changes(rng: _PortableRandom) -> tuple[str, tuple[str, ...] | None]:
    who, what, start = rng.one_of(NAMES), rng.one_of(THINGS), rng.integer(3, 20)
    (verb_1, operation_1), operand_1 = _change(rng), rng.integer(2, 10)
    (verb_2, operation_2), operand_2 = _change(rng), rng.integer(2, 10)
    question = (
        f"{who} has {start} {what}. {who} {verb_1} {operand_1} and {verb_2} {operand_2}. "
        f"How many {what} does {who} have now?"
    )
    return question, _solve(start, (operation_1, operand_1), (operation_2, operand_2))


def _holders(rng: _PortableRandom) -> tuple[str, tuple[str, ...] | None]:
    who, what, holder = rng.one_of(NAMES), rng.one_of(THINGS), rng.one_of(HOLDERS)
    many, each = rng.integer(2, 7), rng.integer(2, 7)
    question = f"{who} has {many} {holder} of {each} {what}. How many {what} does {who} have?"
    return question, _solve(many, ("*", each))


def _holders_and_change(rng: _PortableRandom) -> tuple[str, tuple[str, ...] | None]:
    who, what, holder = rng.one_of(NAMES), rng.one_of(THINGS), rng.one_of(HOLDERS)
    many, each = rng.integer(2, 7), rng.integer(2, 7)
    (verb, operation), operand = _change(rng), rng.integer(2, 10)
    question = (
        f"{who} has {many} {holder} of {each} {what}. {who} {verb} {operand} {what}. "
        f"How many {what} does {who} have now?"
    )
    return question, _solve(many, ("*", each), (operation, operand))


def _comparison(rng: _PortableRandom) -> tuple[str, tuple[str, ...] | None]:
    (who, other), what = rng.two_of(NAMES), rng.one_of(THINGS)
    start, operand = rng.integer(3, 20), rng.integer(2, 10)
    relation, operation = (("more", "+"), ("fewer", "-"))[rng.integer(0, 1)]
    question = (
        f"{who} has {start} {what}. {other} has {operand} {relation} than {who}. How many {what} does {other} have?"
    )
    return question, _solve(start, (operation, operand))


def _comparison_and_total(rng: _PortableRandom) -> tuple[str, tuple[str, ...] | None]:
    (who, other), what = rng.two_of(NAMES), rng.one_of(THINGS)
    start, operand = rng.integer(3, 15), rng.integer(2, 10)
    relation, operation = (("more", "+"), ("fewer", "-"))[rng.integer(0, 1)]
    question = f"{who} has {start} {what}. {other} has {operand} {relation}. How many {what} do {who} and {other} have?"
    return question, _solve(start, (operation, operand), ("+", start))


# Repeated entries set the frequencies: two thirds of the problems have two steps.
_STORIES = (
    _one_change,
    _holders,
    _comparison,
    _two_changes,
    _two_changes,
    _two_changes,
    _holders_and_change,
    _holders_and_change,
    _comparison_and_total,
    _comparison_and_total,
)


def problems(seed: int) -> Iterator[Problem]:
    """An endless sequence of distinct problems."""
    rng = _PortableRandom(seed)
    seen: set[str] = set()
    while True:
        question, steps = rng.one_of(_STORIES)(rng)
        if steps is not None and question not in seen:
            seen.add(question)
            yield Problem(question, steps)


def make_splits(*, seed: int, train: int, test: int) -> tuple[list[Problem], list[Problem]]:
    """The first `train` training problems and the first `test` held-out problems."""
    splits: tuple[list[Problem], list[Problem]] = ([], [])
    sizes = (train, test)
    for problem in problems(seed):
        if len(splits[problem.held_out]) < sizes[problem.held_out]:
            splits[problem.held_out].append(problem)
        if all(len(split) == size for split, size in zip(splits, sizes, strict=True)):
            break
    return splits


def write_splits(folder: Path, *, seed: int = DEFAULT_SEED) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    train, test = make_splits(seed=seed, train=TRAIN_PROBLEMS, test=TEST_PROBLEMS)
    for name, split in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_bytes("".join(problem.json_line() for problem in split).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description="Write train.jsonl and test.jsonl of the tiny word-problem task.")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    arguments = parser.parse_args()
    write_splits(arguments.folder, seed=arguments.seed)


if __name__ == "__main__":
    main()
