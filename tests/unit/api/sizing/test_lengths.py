"""Tokens of a microbatch. What is too long is in test_report.py."""

from __future__ import annotations

from typing import Any

import pytest

from areal_api.config import GRPOConfig
from areal_api.sizing.lengths import tokens_per_microbatch


def config(**actor: Any) -> GRPOConfig:
    return GRPOConfig.model_validate(
        {
            "experiment_name": "e",
            "actor": {"path": "m", **actor},
            "train_dataset": {"path": "d", "batch_size": 8, "max_length": 1024},
            "gconfig": {"n_samples": 4, "max_new_tokens": 1024},
        }
    )


@pytest.mark.parametrize(("bound", "tokens"), [(10240, 10240), (1000, 2048), (None, 8 * 2048)])
def test_a_microbatch_holds_a_minibatch_unless_it_is_bounded_and_never_less_than_a_sequence(
    bound: int | None, tokens: int
) -> None:
    assert tokens_per_microbatch(config(mb_spec={"max_tokens_per_mb": bound}), ranks=1) == tokens


@pytest.mark.parametrize(("ranks", "context", "sequences"), [(2, 1, 4), (4, 2, 4), (8, 1, 1), (3, 1, 3)])
def test_a_share_of_the_ranks_has_its_part_of_a_minibatch(ranks: int, context: int, sequences: int) -> None:
    assert tokens_per_microbatch(config(parallel={"context": context}), ranks=ranks) == sequences * 2048
