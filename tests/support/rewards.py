"""Deterministic reward functions for training tests."""

from __future__ import annotations

from typing import Any


def token_parity(prompt: str, completions: str, prompt_ids: list[int], completion_ids: list[int], **rest: Any) -> float:
    """1 if the sum of the completion's token ids is even, else 0."""
    return float(sum(completion_ids) % 2 == 0)
