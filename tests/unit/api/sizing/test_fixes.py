"""Changes with which a trainer fits."""

from __future__ import annotations

import pytest

from areal_api.experiment import ExperimentSpec
from areal_api.sizing.fixes import largest_that_fits, trainer_fix
from areal_api.sizing.gpus import GPUS
from areal_api.sizing.model_shape import ModelShape
from benchmarks.memory import qwen25


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        (20_000, 10_000),  # everything fits
        (5_000, 4_096),  # rounded down to a multiple of 1,024
        (1_100, 1_050),  # rounding would go below the least
    ],
)
def test_the_largest_number_is_found_and_rounded(bound: int, expected: int) -> None:
    assert largest_that_fits(lambda n: n <= bound, 1_050, 10_000) == expected


def test_sequences_that_a_microbatch_cannot_be_split_below_are_divided_over_ranks() -> None:
    shape = ModelShape.of_config(qwen25("Qwen2.5-32B"))
    spec = ExperimentSpec.model_validate(
        {
            "config": {
                "experiment_name": "e",
                "actor": {"path": "m"},
                "train_dataset": {"path": "d", "batch_size": 64},
                "gconfig": {"max_new_tokens": 131_072, "max_tokens": 131_072},
            },
            "trainer": {"nodes": 4, "processesPerNode": 8},
        }
    )
    fix = trainer_fix(spec, shape, GPUS["H100-80GB"], tokens=131_072, longest=131_072)
    assert fix == "set config.actor.parallel.context=4"  # 2 would need 91 GiB
