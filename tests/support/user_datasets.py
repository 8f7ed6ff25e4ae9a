"""User-defined dataset functions."""

from __future__ import annotations

from typing import Any

from datasets import Dataset


def numbered(split: str, rank: int, world_size: int) -> Dataset:
    """Six rows, distributed over ranks as AReaL's functions do."""
    rows = [{"question": f"{split} {number}", "answer": str(number)} for number in range(6)]
    return Dataset.from_list(rows[rank::world_size])


def conversations(split: str, tokenizer: Any, config: Any) -> list[dict[str, Any]]:
    """One batch of rows with messages and without an answer."""
    assert tokenizer.chat_template
    return [{"messages": [{"role": "user", "content": f"{split} {n}"}]} for n in range(config.batch_size)]


def demanding(split: str, password: str) -> list[dict[str, Any]]:
    """Has a parameter that cannot be supplied."""
    return []


def text(split: str) -> str:
    """Returns no rows."""
    return "rows"
