"""Checks before an experiment is applied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from areal_api.experiment import GRPOExperiment
from areal_launcher import run_files
from areal_launcher.cluster.checks import check_files, check_target, in_pods, is_fresh
from hack.testbed.experiment_case import Case


def experiment(**changes: Any) -> GRPOExperiment:
    return GRPOExperiment.model_validate(
        Case("", {f"spec.{key}": value for key, value in changes.items()}).experiment()
    )


def test_local_files_are_distinguished_from_files_in_images_and_volumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text("")
    mounted = experiment(**{"trainer.volumeMounts": [{"name": "data", "mountPath": "/data"}]}).spec
    assert in_pods(mounted, "/data/mine.py")
    assert in_pods(mounted, "examples/tiny/model")
    assert in_pods(mounted, "runs/tiny/trial0/checkpoints")
    assert not in_pods(mounted, "examples/tiny/../mine.py")
    assert not in_pods(mounted, "/database/mine.py")
    assert in_pods(experiment(**{"trainer.image": "mine:1"}).spec, "mine.py")
    check_files(experiment().spec)
    with pytest.raises(ValueError, match=r"train_dataset\.path: mine\.jsonl is a local file"):
        check_files(experiment(**{"config.train_dataset.path": "mine.jsonl"}).spec)


def test_results_of_different_runs_are_not_mixed(tmp_path: Path) -> None:
    check_target(tmp_path / "new", namespace="a", name="exp")
    run_files.write_atomic(run_files.cluster_file(tmp_path), json.dumps({"namespace": "a", "name": "exp"}))
    check_target(tmp_path, namespace="a", name="exp")
    with pytest.raises(ValueError, match="contains the results of exp of namespace a"):
        check_target(tmp_path, namespace="b", name="exp")


def test_a_lease_is_valid_until_it_expires() -> None:
    held = {"holderIdentity": "x", "leaseDurationSeconds": 15, "renewTime": "1970-01-01T00:01:00.000000Z"}
    assert is_fresh({"spec": held}, 70.0)
    assert not is_fresh({"spec": held}, 80.0)
    assert not is_fresh({"spec": {**held, "holderIdentity": ""}}, 70.0)
    assert not is_fresh({}, 70.0)
