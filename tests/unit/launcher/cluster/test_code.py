"""Packing the code for a cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from areal_api.experiment import GRPOExperiment
from areal_launcher.cluster.code import pack_code, upload_to_bucket
from areal_launcher.cluster.run import manifest
from areal_launcher.errors import RunError
from hack.testbed.s3_server import S3Server


def experiment(directory: Path, **storage: Any) -> GRPOExperiment:
    config = {"actor": {"path": "m"}, "train_dataset": {"path": "d", "batch_size": 8}}
    spec = {"config": config, "code": {"directory": str(directory), "requirements": ["a"]}, "storage": storage}
    return GRPOExperiment.model_validate({"metadata": {"name": "case"}, "spec": spec})


def test_the_manifest_refers_to_the_archive_instead_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    packed, code = pack_code(experiment(tmp_path))
    assert code is not None
    assert code.config_map == f"case-code-{code.archive.sha256[:10]}"
    assert manifest(packed, None)["spec"]["code"] == {
        "archive": {"configMap": code.config_map, "sha256": code.archive.sha256},
        "requirements": ["a"],
    }


def test_a_directory_that_no_config_map_holds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(os.urandom(800 * 1024))
    with pytest.raises(ValueError, match=r"code\.directory: .* has 80\d KiB compressed, more than the 700 KiB"):
        pack_code(experiment(tmp_path))


def test_a_large_directory_is_refused_for_agents_that_reach_no_bucket(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(os.urandom(800 * 1024))
    agent = {"name": "solver", "command": ["python3", "-m", "solver"], "code": True}
    spec = {
        "config": {
            "actor": {"path": "m"},
            "train_dataset": {"path": "d", "batch_size": 8},
            "rollout": {"agent": {"mode": "online"}},
        },
        "code": {"directory": str(tmp_path)},
        "storage": {"bucket": {"url": "s3://team/runs"}},
        "agents": [agent],
    }
    given = GRPOExperiment.model_validate({"metadata": {"name": "case"}, "spec": spec})
    with pytest.raises(ValueError, match=r"too large for a ConfigMap; agents\[0\]\.code is true for solver"):
        pack_code(given)


def test_a_large_directory_goes_into_the_bucket_of_the_run(tmp_path: Path) -> None:
    store = S3Server(tmp_path / "s3")
    folder = store.create_bucket("team")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "noise").write_bytes(os.urandom(800 * 1024))
    bucket = {"url": "s3://team/runs", "endpointUrl": store.url, "region": "us-east-1"}
    given = experiment(tmp_path / "code", bucket=bucket)
    packed, code = pack_code(given)
    assert code is not None
    assert code.config_map is None
    assert manifest(packed, None)["spec"]["code"]["archive"] == {"sha256": code.archive.sha256}
    env = [{"name": name, "value": value} for name, value in store.environ.items()]
    trainer = packed.spec.trainer.model_copy(update={"env": env})
    spec = packed.spec.model_copy(update={"trainer": trainer})
    store.start()
    try:
        upload_to_bucket(code, spec)
        assert (folder / "runs" / "code" / f"{code.archive.sha256}.tar.gz").read_bytes() == code.archive.data
    finally:
        store.stop()
    with pytest.raises(RunError, match=r"^code\.directory: storage\.bucket: cannot"):
        upload_to_bucket(code, spec)
