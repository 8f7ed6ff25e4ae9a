"""What servers answer about experts is checked before anything uses it."""

from __future__ import annotations

import numpy as np
import pytest

from areal_trainer.routing import Routing, recorded_until
from areal_trainer.trajectory import Trajectory

ROUTING = Routing(layers=3, with_experts=(0, 2), top_k=2, experts=4)


def encoded(chosen: list[list[list[int]]]) -> bytes:
    return np.array(chosen, dtype="<i4").tobytes()


def test_an_answer_is_the_choices_of_the_layers_with_experts() -> None:
    answer = encoded([[[0, 1], [0, 0], [3, 2]], [[2, 0], [9, 9], [1, 3]]])
    found = ROUTING.decode(answer, 2)
    assert found.dtype == np.uint8
    assert found.tolist() == [[[0, 1], [3, 2]], [[2, 0], [1, 3]]]
    assert ROUTING.decode(b"", 0).shape == (0, 2, 2)
    assert Routing(1, (0,), 1, 257).decode(encoded([[[256]]]), 1).tolist() == [[[256]]]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "no routed experts, which actor.router_replay trains with"),
        (encoded([[[0, 1], [0, 0]]]), "16 bytes of routed experts instead of 24 for 1 tokens × 3 layers × 2 experts"),
        (encoded([[[0, 1], [0, 0], [3, 4]]]), "chose experts 0 … 4, but the model has 0 … 3"),
        (encoded([[[-1, 1], [0, 0], [3, 2]]]), "chose experts -1 … 3"),
        (encoded([[[0, 1], [0, 0], [2, 2]]]), "an expert twice for one token"),
    ],
)
def test_answers_that_cannot_be_are_refused(answer: bytes | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ROUTING.decode(answer, 1)


def test_a_token_keeps_the_experts_of_the_turn_that_processed_it_first() -> None:
    first, second = np.full((4, 2, 2), 1, np.uint8), np.full((9, 2, 2), 2, np.uint8)
    found = recorded_until([(5, first), (10, second)])
    assert found is not None
    assert found[:, 0, 0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 2]
    assert recorded_until([(5, None)]) is None


@pytest.mark.parametrize(("covered", "fits"), [(2, False), (3, True), (5, True), (6, False)])
def test_experts_of_a_trajectory_cover_what_precedes_its_trained_tokens(covered: int, fits: bool) -> None:
    def make() -> Trajectory:
        return Trajectory.of_lists(
            input_ids=[1, 2, 3, 4, 5], loss_mask=[False, False, True, True, False], logprobs=[0.0] * 5,
            versions=[-1, -1, 0, 0, -1], reward=0.0, prompt_len=2, finish_reason="stop",
            experts=np.zeros((covered, 2, 2), np.uint8),
        )  # fmt: skip

    if fits:
        assert make().in_group(3).experts is not None
        assert make().without_experts().experts is None
    else:
        with pytest.raises(ValueError, match=f"cover {covered} tokens; they must cover the 3"):
            make()
