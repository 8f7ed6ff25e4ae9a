"""Packing the code for a cluster."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from areal_api.experiment import GRPOExperiment
from areal_launcher.cluster.code import pack_code
from areal_launcher.cluster.run import manifest


def experiment(directory: Path) -> GRPOExperiment:
    config = {"actor": {"path": "m"}, "train_dataset": {"path": "d", "batch_size": 8}}
    spec = {"config": config, "code": {"directory": str(directory), "requirements": ["a"]}}
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
