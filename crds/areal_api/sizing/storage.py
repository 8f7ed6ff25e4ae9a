"""The size of a run's volume where ``storage.size`` is null."""

from __future__ import annotations

from areal_api.experiment import ExperimentSpec
from areal_api.sizing.disk import disk_use
from areal_api.sizing.known_models import known_shape

DEFAULT_SIZE = "100Gi"  # for models whose size only their config.json tells
HEADROOM = 1.25
ROUNDED_TO_GIB = 10
GIB = 2**30


def storage_size(spec: ExperimentSpec) -> str:
    """``storage.size``. Its default is what the run writes at most and a quarter more, if the model is a published one.

    The operator cannot read other models, which are on volumes or on the hub: for them the default is
    ``DEFAULT_SIZE``, and ``grpo check`` compares it with what the run writes.
    """
    if spec.storage.size is not None:
        return spec.storage.size
    shape = known_shape(spec.config.actor.path)
    if shape is None:
        return DEFAULT_SIZE
    needed = HEADROOM * disk_use(shape, spec.config, steps_per_epoch=None, from_hub=True).total_bytes
    return f"{-(-int(needed) // (ROUNDED_TO_GIB * GIB)) * ROUNDED_TO_GIB}Gi"
