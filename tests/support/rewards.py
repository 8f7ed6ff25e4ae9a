"""Reward functions of tests."""

from __future__ import annotations

from typing import Any


def token_parity(prompt: str, completions: str, prompt_ids: list[int], completion_ids: list[int], **rest: Any) -> float:
    """1 for completions whose token ids have an even sum: depends on the sample alone."""
    return float(sum(completion_ids) % 2 == 0)
