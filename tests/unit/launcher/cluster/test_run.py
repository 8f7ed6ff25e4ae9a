"""The object applied to the cluster."""

from __future__ import annotations

from typing import Any

from areal_api.experiment import GRPOExperiment
from areal_launcher.cluster.run import manifest
from hack.testbed.experiment_case import Case


def experiment(**changes: Any) -> GRPOExperiment:
    return GRPOExperiment.model_validate(
        Case("", {f"spec.{key}": value for key, value in changes.items()}).experiment()
    )


def test_the_manifest_has_no_defaults_and_no_duplicate_name() -> None:
    body = manifest(experiment(**{"servers.replicas": 2}), None)
    assert body["spec"]["servers"] == {"replicas": 2}
    assert "experiment_name" not in body["spec"]["config"]
    assert set(body["spec"]) == {"config", "servers"}
