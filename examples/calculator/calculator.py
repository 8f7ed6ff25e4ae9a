"""The calculator of the examples' agents, and what a correct answer is. It imports nothing but the standard library."""

from __future__ import annotations

import ast
import operator
import re
from typing import Any

OPERATIONS: dict[type[ast.AST], Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
LONGEST_EXPRESSION = 200
_ANSWER = re.compile(r"#### ?\$?(-?[0-9][0-9,]*(?:\.[0-9]+)?)")


def value_of(expression: str) -> str:
    """The value of an expression of numbers, + - * / and parentheses; "error" for anything else."""
    if len(expression) > LONGEST_EXPRESSION:
        return "error"
    try:
        return f"{_evaluate(ast.parse(expression.strip(), mode='eval').body):.12g}"
    except (SyntaxError, KeyError, ZeroDivisionError, OverflowError, MemoryError, RecursionError):
        return "error"


def reward_of(answer: str, reference: str) -> float:
    """1 if the last number after ``####`` is that of the reference."""
    expected, found = final_number(reference), final_number(answer)
    return float(found is not None and found == expected)


def final_number(text: str) -> float | None:
    """The last number after ``####``."""
    numbers = _ANSWER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None


def _evaluate(node: ast.AST) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)
    if isinstance(node, ast.BinOp):
        return float(OPERATIONS[type(node.op)](_evaluate(node.left), _evaluate(node.right)))
    if isinstance(node, ast.UnaryOp):
        return float(OPERATIONS[type(node.op)](_evaluate(node.operand)))
    raise KeyError(type(node).__name__)
