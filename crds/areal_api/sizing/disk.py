"""Disk space of a run: published weights, recovery checkpoints and saved models."""

from __future__ import annotations

import math
from dataclasses import dataclass

from areal_api.config import GRPOConfig
from areal_api.frequency import Frequency
from areal_api.sizing.adapters import adapter_parameters
from areal_api.sizing.model_shape import ModelShape
from areal_api.sizing.server_memory import BYTES_OF_DTYPE

PUBLISHED_VERSIONS = 3  # two are kept while a third is being written
DELTA_SHARE = 0.5  # of a file: a larger delta is not kept
MASTER_BYTES = 4  # of a float32 weight in recovery checkpoints, beside the optimizer's state
LOGS_BYTES = 256 * 2**20  # logs and statistics of an ordinary run


@dataclass(frozen=True)
class DiskUse:
    """Bytes that a run writes at most, by kind. Saved models are counted for the steps that are known."""

    weights_bytes: int
    recovery_bytes: int
    checkpoints_bytes: int
    model_cache_bytes: int
    logs_bytes: int = LOGS_BYTES
    rollouts_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All of it."""
        parts = (self.weights_bytes, self.recovery_bytes, self.checkpoints_bytes, self.model_cache_bytes)
        return sum(parts) + self.logs_bytes + self.rollouts_bytes


def disk_use(shape: ModelShape, config: GRPOConfig, *, steps_per_epoch: int | None, from_hub: bool) -> DiskUse:
    """What the run directory, and the model cache if the model comes from the hub, need.

    ``steps_per_epoch`` is None if the number of rows is unknown; checkpoints by epoch then count once per epoch.
    """
    model = shape.parameters * BYTES_OF_DTYPE[config.actor.dtype]
    published = PUBLISHED_VERSIONS * model if config.actor.weight_update_mode == "disk" else model
    if config.actor.weight_deltas:
        published += int(DELTA_SHARE * published)
    per_parameter = MASTER_BYTES + config.actor.optimizer.state_bytes
    recovery = 0
    if config.recover.mode != "disabled":
        lora = config.actor.lora
        trained = shape.parameters if lora is None else shape.layers * adapter_parameters(shape, lora)
        recovery = (config.recovery_checkpoints + 1) * per_parameter * trained
    saved = saved_models(config.saver, config, steps_per_epoch=steps_per_epoch)
    saved += config.evaluator.save_best
    rollouts = config.rollout.dump_max_bytes if config.rollout.dump_to_file else 0
    if config.held_out and config.evaluator.dump_to_file:
        rollouts += config.evaluator.dump_max_bytes
    return DiskUse(published, recovery, saved * model, model if from_hub else 0, rollouts_bytes=rollouts)


def saved_models(saver: Frequency, config: GRPOConfig, *, steps_per_epoch: int | None) -> int:
    """How many Hugging Face checkpoints the run keeps; the last step is always saved."""
    epochs, steps = config.total_train_epochs, config.total_train_steps
    if steps is None and steps_per_epoch is not None:
        steps = epochs * steps_per_epoch
    count = 0
    if saver.freq_epochs is not None:
        whole = epochs if steps is None or steps_per_epoch is None else steps // steps_per_epoch
        count += min(epochs, whole) // saver.freq_epochs
    if saver.freq_steps is not None and steps is not None:
        count += math.floor(steps / saver.freq_steps)
    return count + 1
