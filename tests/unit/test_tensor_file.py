"""Our safetensors files are read by the safetensors package, and their checksum is that of the file."""

from pathlib import Path

import torch
import xxhash
from safetensors.torch import load_file

from areal_trainer.tensor_file import save_file


def test_the_safetensors_package_reads_what_was_written(tmp_path: Path) -> None:
    tensors = {
        "flags": torch.tensor([True, False, True]),
        "number": torch.tensor(7),
        "odd": torch.arange(3, dtype=torch.float32),
        "turned": torch.arange(6, dtype=torch.float32).view(2, 3).t(),
        "none": torch.empty(0, 4),
    }
    save_file(tensors, tmp_path / "file", dtype=torch.bfloat16)
    held = load_file(tmp_path / "file")
    assert held.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert held[name].dtype == (torch.bfloat16 if tensor.is_floating_point() else tensor.dtype)
        assert held[name].shape == tensor.shape
        assert held[name].equal(tensor.to(held[name].dtype))


def test_the_checksum_is_that_of_the_file(tmp_path: Path) -> None:
    checksum = save_file({"a": torch.randn(1000, 33)}, tmp_path / "file", dtype=torch.float32)
    assert checksum == xxhash.xxh3_128((tmp_path / "file").read_bytes()).hexdigest()
