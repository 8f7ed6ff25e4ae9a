"""The condition Fits: what the operator knows, and what it does not guess."""

from __future__ import annotations

from typing import Any

from areal_api.experiment import ExperimentSpec
from areal_api.sizing.gpus import PRODUCT_LABEL
from areal_operator.fit import fit
from areal_operator.status import ConditionUpdate

H100 = {"nodeSelector": {PRODUCT_LABEL: "NVIDIA-H100-80GB-HBM3"}}


def condition(path: str, *, size: str = "2Ti", **sections: Any) -> ConditionUpdate:
    config = {
        "experiment_name": "e",
        "actor": {"path": path, "gradient_checkpointing": True, "mb_spec": {"max_tokens_per_mb": 8192}},
        "train_dataset": {"path": "d", "batch_size": 8},
        "gconfig": {"n_samples": 4, "max_new_tokens": 1024},
    }
    return fit(ExperimentSpec.model_validate({"config": config, "storage": {"size": size}, **sections}))


def test_a_published_model_on_a_selected_gpu_fits() -> None:
    found = condition("Qwen/Qwen2.5-1.5B", trainer=H100)
    assert (found.status, found.reason.code) == ("True", "Fits")


def test_one_that_does_not_fit_is_named_with_the_numbers_and_the_fix() -> None:
    found = condition("Qwen/Qwen2.5-7B", trainer=H100)
    assert (found.status, found.reason.code) == ("False", "DoesNotFit")
    assert "the trainer needs" in found.reason.message
    assert "use 2 ranks" in found.reason.message


def test_a_volume_that_is_too_small_is_seen_without_a_gpu() -> None:
    found = condition("Qwen/Qwen2.5-7B", size="100Gi")
    assert found.status == "False"
    assert "storage.size is 100Gi" in found.reason.message


def test_an_unknown_gpu_and_an_unknown_model_are_not_guessed() -> None:
    for path, reason in (("Qwen/Qwen2.5-1.5B", "the GPU is unknown"), ("/data/my-model", "cannot read actor.path")):
        found = condition(path)
        assert (found.status, found.reason.code) == ("Unknown", "NotChecked")
        assert reason in found.reason.message
