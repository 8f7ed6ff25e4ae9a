"""Disk use of a run, by hand for a model of 1.54 G parameters."""

from __future__ import annotations

from typing import Any

from areal_api.config import GRPOConfig
from areal_api.frequency import Frequency
from areal_api.sizing.disk import LOGS_BYTES, disk_use, saved_models
from areal_api.sizing.model_shape import ModelShape
from benchmarks.memory import qwen25

SHAPE = ModelShape.of_config(qwen25("Qwen2.5-1.5B"))
P = SHAPE.parameters


def config(**changes: Any) -> GRPOConfig:
    base = {"experiment_name": "e", "actor": {"path": "m"}, "train_dataset": {"path": "d", "batch_size": 8}}
    return GRPOConfig.model_validate(base | changes)


def test_three_weight_versions_three_recovery_checkpoints_and_the_last_model() -> None:
    use = disk_use(SHAPE, config(), steps_per_epoch=None, from_hub=False)
    assert use.weights_bytes == 3 * 2 * P
    assert use.recovery_bytes == 3 * 12 * P  # two kept and one being written
    assert use.checkpoints_bytes == 2 * P
    assert use.total_bytes == (6 + 36 + 2) * P + LOGS_BYTES


def test_deltas_need_up_to_half_more_for_published_weights() -> None:
    use = disk_use(SHAPE, config(actor={"path": "m", "weight_deltas": True}), steps_per_epoch=None, from_hub=False)
    assert use.weights_bytes == 9 * P


def test_a_model_of_the_hub_is_cached_too() -> None:
    use = disk_use(SHAPE, config(), steps_per_epoch=None, from_hub=True)
    assert use.model_cache_bytes == 2 * P


def test_without_recovery_none_is_counted() -> None:
    use = disk_use(SHAPE, config(recover={"mode": "disabled"}), steps_per_epoch=None, from_hub=False)
    assert use.recovery_bytes == 0


def test_recovery_checkpoints_hold_the_moments_in_their_type() -> None:
    compact = config(actor={"path": "m", "optimizer": {"state_dtype": "bfloat16", "beta2": 0.95}})
    assert disk_use(SHAPE, compact, steps_per_epoch=None, from_hub=False).recovery_bytes == 3 * 8 * P


def test_recovery_checkpoints_hold_adapters_alone() -> None:
    actor = {"path": "m", "lora": {"rank": 16, "target_modules": ["q_proj", "down_proj"]}}
    use = disk_use(SHAPE, config(actor=actor), steps_per_epoch=None, from_hub=False)
    of_layer = 16 * (1536 + 1536 + 8960 + 1536)
    assert use.recovery_bytes == 3 * 12 * 28 * of_layer
    assert use.weights_bytes == 3 * 2 * P  # merged


def test_samples_are_counted_by_their_bound() -> None:
    use = disk_use(
        SHAPE, config(rollout={"dump_to_file": True, "dump_max_bytes": 2**24}), steps_per_epoch=None, from_hub=False
    )
    assert use.rollouts_bytes == 2**24


def test_saved_models_are_counted_by_epochs_and_steps_and_the_last_step() -> None:
    run = config(total_train_epochs=10)
    assert saved_models(Frequency(freq_epochs=2), run, steps_per_epoch=29) == 5 + 1
    assert saved_models(Frequency(freq_steps=29), run, steps_per_epoch=29) == 10 + 1
    assert saved_models(Frequency(), run, steps_per_epoch=29) == 1
