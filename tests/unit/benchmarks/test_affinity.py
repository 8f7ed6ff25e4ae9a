"""The share of repeated prompt tokens, which bounds what a prefix cache can hold."""

from __future__ import annotations

import pytest

from areal_trainer.trajectory import Trajectory
from benchmarks.affinity import repeated_share


def call(prompt: int, answer: int) -> Trajectory:
    mask = [False] * prompt + [True] * answer
    values = [0.0] * len(mask)
    return Trajectory.of_lists(
        input_ids=[2] * len(mask), loss_mask=mask, logprobs=values, versions=[0] * len(mask), reward=0.0,
        prompt_len=prompt, finish_reason="stop",
    )  # fmt: skip


def test_a_call_repeats_the_call_before_it_and_the_first_one_what_all_share() -> None:
    # 10 of 20 tokens, then 25 of 40; the other conversation repeats 10 of 20.
    conversations = [[call(20, 5), call(40, 8)], [call(20, 5)]]
    assert repeated_share(conversations, shared=10) == pytest.approx(100 * (10 + 25 + 10) / (20 + 40 + 20))
