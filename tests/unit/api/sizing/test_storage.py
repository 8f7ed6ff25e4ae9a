"""The default size of a run's volume."""

from __future__ import annotations

import pytest

from areal_api.experiment import GRPOExperiment
from areal_api.quantities import quantity_bytes
from areal_api.sizing.disk import disk_use
from areal_api.sizing.known_models import known_shape
from areal_api.sizing.storage import DEFAULT_SIZE, storage_size
from hack.testbed.experiment_case import Case

GIB = 2**30


def experiment(model: str, **changes: object) -> GRPOExperiment:
    return GRPOExperiment.model_validate(Case("", {"spec.config.actor": {"path": model}, **changes}).experiment())


@pytest.mark.parametrize(
    ("model", "least"), [("Qwen/Qwen2.5-1.5B-Instruct", 90), ("Qwen/Qwen2.5-7B", 350), ("Qwen/Qwen2.5-32B", 1400)]
)
def test_a_published_model_gets_what_its_run_writes_and_a_quarter_more(model: str, least: int) -> None:
    spec = experiment(model).spec
    shape = known_shape(model)
    assert shape is not None
    size = quantity_bytes(storage_size(spec))
    assert size >= 1.25 * disk_use(shape, spec.config, steps_per_epoch=None, from_hub=True).total_bytes
    assert size >= least * GIB


def test_other_models_get_the_default_and_the_key_takes_precedence() -> None:
    assert storage_size(experiment("my/model").spec) == DEFAULT_SIZE
    assert storage_size(experiment("Qwen/Qwen2.5-7B", **{"spec.storage.size": "5Gi"}).spec) == "5Gi"
