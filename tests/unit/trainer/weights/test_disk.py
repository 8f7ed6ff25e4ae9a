"""Published versions are complete, verifiable, and limited to the last two."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from areal_trainer.ranks import Ranks
from areal_trainer.weights import disk as weights
from areal_trainer.weights.disk import (
    WeightUpdate,
    latest_published,
    publish_to_disk,
    replace_directory,
    verify_published,
)
from areal_trainer.weights.finite import NonFiniteWeightsError


class TwoTensors:
    """A policy with two tensors."""

    def __init__(self, value: float = 1.0) -> None:
        self.value = value

    def named_full_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "a.weight", torch.full((4, 8), self.value)
        yield "b.weight", torch.full((16,), -self.value)

    def named_own_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self.named_full_tensors()

    def buffers(self) -> dict[str, torch.Tensor]:
        return {}

    def save_model_config(self, directory: Path) -> None:
        (directory / "config.json").write_text("{}")


def publish(run: Path, version: int, value: float = 1.0, dtype: torch.dtype = torch.float32) -> Path:
    return publish_to_disk(TwoTensors(value), run=run, version=version, dtype=dtype, ranks=Ranks.current())


def test_a_published_version_has_the_dtype_of_the_servers(tmp_path: Path) -> None:
    path = publish(tmp_path, 3, 0.5, torch.bfloat16)
    assert path == tmp_path / "weights" / "v3"
    loaded = load_file(path / "model.safetensors")
    assert loaded["a.weight"].dtype == torch.bfloat16
    assert loaded["a.weight"].eq(0.5).all()
    assert loaded["b.weight"].eq(-0.5).all()
    verify_published(path)


def test_the_last_two_versions_are_kept(tmp_path: Path) -> None:
    for version in range(4):
        publish(tmp_path, version)
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == ["v2", "v3"]
    assert latest_published(tmp_path) == (3, tmp_path / "weights" / "v3")


def test_publishing_a_version_again_replaces_it(tmp_path: Path) -> None:
    publish(tmp_path, 1, 1.0)
    path = publish(tmp_path, 1, 2.0)
    assert load_file(path / "model.safetensors")["a.weight"].eq(2.0).all()
    assert [entry.name for entry in (tmp_path / "weights").iterdir()] == ["v1"]


def test_files_of_a_library_that_only_the_owner_may_read_get_the_modes_of_the_umask(tmp_path: Path) -> None:
    partial = tmp_path / "partial"
    partial.mkdir(mode=0o700)
    (partial / "model.safetensors").write_text("x")
    (partial / "model.safetensors").chmod(0o600)
    (tmp_path / "made.txt").write_text("x")
    (tmp_path / "made").mkdir()
    replace_directory(partial, tmp_path / "target")
    files = (tmp_path / "target" / "model.safetensors", tmp_path / "made.txt")
    folders = (tmp_path / "target", tmp_path / "made")
    for mine, made in (files, folders):
        assert mine.stat().st_mode == made.stat().st_mode


def test_a_failed_write_leaves_no_directory_with_the_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **keywords: object) -> None:
        raise OSError(28, "No space left on device")

    publish(tmp_path, 1)
    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        publish(tmp_path, 2)
    assert latest_published(tmp_path) == (1, tmp_path / "weights" / "v1")


def test_large_models_are_sharded_with_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SHARD_BYTES", 100)  # a.weight has 128 bytes, b.weight 64
    path = publish(tmp_path, 0)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 192
    assert index["weight_map"] == {
        "a.weight": "model-00001-00001.safetensors",
        "b.weight": "model-00001-00002.safetensors",
    }
    for name, file in index["weight_map"].items():
        assert name in load_file(path / file)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "its manifest lists"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\x7f"), "checksum"),
        (lambda file: file.unlink(), "None bytes"),
    ],
    ids=["partial", "corrupt", "missing"],
)
def test_a_damaged_version_is_detected(tmp_path: Path, harm: object, message: str) -> None:
    path = publish(tmp_path, 0)
    harm(path / "model.safetensors")  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        verify_published(path)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(math.nan, torch.float32), (math.inf, torch.float32), (1e5, torch.float16), (-3.4e38, torch.bfloat16)],
)
def test_weights_that_are_not_finite_are_not_published(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    publish(tmp_path, 1)
    with pytest.raises(NonFiniteWeightsError, match=r"a\.weight holds values"):
        publish(tmp_path, 2, value, dtype)
    assert latest_published(tmp_path) == (1, tmp_path / "weights" / "v1")


def test_an_update_needs_a_path_or_a_broadcast() -> None:
    with pytest.raises(ValueError, match="neither path nor broadcast"):
        WeightUpdate(3)
