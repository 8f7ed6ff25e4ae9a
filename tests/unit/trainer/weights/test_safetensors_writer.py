"""Files can be read by the safetensors package, and their checksums are correct."""

import ctypes
import errno
from pathlib import Path

import pytest
import torch
import xxhash
from safetensors.torch import load_file

from areal_trainer.weights import safetensors_writer as tensor_file
from areal_trainer.weights.safetensors_writer import save_file


def test_the_safetensors_package_reads_the_file(tmp_path: Path) -> None:
    tensors = {
        "flags": torch.tensor([True, False, True]),
        "number": torch.tensor(7),
        "odd": torch.arange(3, dtype=torch.float32),
        "turned": torch.arange(6, dtype=torch.float32).view(2, 3).t(),
        "none": torch.empty(0, 4),
    }
    save_file(tensors, tmp_path / "file", dtype=torch.bfloat16)
    loaded = load_file(tmp_path / "file")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == (torch.bfloat16 if tensor.is_floating_point() else tensor.dtype)
        assert loaded[name].shape == tensor.shape
        assert loaded[name].equal(tensor.to(loaded[name].dtype))


def test_large_tensors_are_unchanged(tmp_path: Path) -> None:
    tensors = {"long": torch.arange(5_000_000, dtype=torch.int32), "wide": torch.randn(700, 1001), "one": torch.ones(1)}
    checksum = save_file(tensors, tmp_path / "file", dtype=torch.bfloat16)
    loaded = load_file(tmp_path / "file")
    assert all(loaded[name].equal(tensor.to(loaded[name].dtype)) for name, tensor in tensors.items())
    assert checksum == xxhash.xxh3_128((tmp_path / "file").read_bytes()).hexdigest()


class RefusingSystem:
    """A C library whose optional calls fail with ``code``."""

    def __init__(self, code: int) -> None:
        self.code = code

    def fallocate(self, *arguments: int) -> int:
        ctypes.set_errno(self.code)
        return -1

    sync_file_range = fallocate


def test_a_full_disk_fails_at_allocation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "_libc", RefusingSystem(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        save_file({"a": torch.ones(3)}, tmp_path / "file", dtype=torch.bfloat16)


def test_without_fallocate_the_file_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"long": torch.arange(5_000_000, dtype=torch.int32)}
    checksum = save_file(tensors, tmp_path / "file", dtype=torch.bfloat16)
    monkeypatch.setattr(tensor_file, "_libc", RefusingSystem(errno.EOPNOTSUPP))
    assert save_file(tensors, tmp_path / "other", dtype=torch.bfloat16) == checksum
    assert (tmp_path / "other").read_bytes() == (tmp_path / "file").read_bytes()


def test_the_checksum_is_that_of_the_file(tmp_path: Path) -> None:
    checksum = save_file({"a": torch.randn(1000, 33)}, tmp_path / "file", dtype=torch.float32)
    assert checksum == xxhash.xxh3_128((tmp_path / "file").read_bytes()).hexdigest()
