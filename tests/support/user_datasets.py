"""Data sets by a function of one's own."""

from __future__ import annotations

from typing import Any

from datasets import Dataset


def numbered(split: str, rank: int, world_size: int) -> Dataset:
    """Six rows, dealt out to ranks as AReaL's functions do it."""
    rows = [{"question": f"{split} {number}", "answer": str(number)} for number in range(6)]
    return Dataset.from_list(rows[rank::world_size])


def conversations(split: str, tokenizer: Any, config: Any) -> list[dict[str, Any]]:
    """Rows with messages and without an answer, as many as a batch holds."""
    assert tokenizer.chat_template
    return [{"messages": [{"role": "user", "content": f"{split} {n}"}]} for n in range(config.batch_size)]


def demanding(split: str, password: str) -> list[dict[str, Any]]:
    """Wants what it cannot get."""
    return []


def text(split: str) -> str:
    """Gives no rows."""
    return "rows"
