"""Reading each rank's part of a model from its files."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedModel

from areal_trainer.model.loading import _empty, load
from areal_trainer.model.model_files import ModelFiles, UnreadableFilesError
from support import loading_memory
from support.tiny_policy import plain_model, save_tiny_model

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
LARGE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 16_000}
EXPERTS: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen3_moe": {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


def empty(path: Path) -> PreTrainedModel:
    """The model without its parameters, which are NaN."""
    model = _empty(AutoConfig.from_pretrained(path), torch.float32, "eager")
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", EXPERTS)
def test_a_model_read_from_its_files_is_that_of_transformers(tmp_path: Path, kind: str, tied: bool) -> None:
    path = save_tiny_model(tmp_path, kind, tied=tied, **EXPERTS[kind])
    model = empty(path)
    ModelFiles(str(path), model).read(model, dict(model.named_parameters()))
    expected = plain_model(path).state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), r"no tensor model\.norm\.weight"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}), r"model\.norm\.weight is F32 \[3\]"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(32).to(torch.int8)}), "is I8"),
    ],
)
def test_files_with_other_tensors_are_left_to_transformers(tmp_path: Path, change: Any, reason: str) -> None:
    path = save_tiny_model(tmp_path)
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnreadableFilesError, match=reason):
        ModelFiles(str(path), empty(path))


def test_a_model_without_safetensors_is_loaded_as_a_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save_tiny_model(tmp_path)
    expected = plain_model(path).state_dict()
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    with caplog.at_level(logging.INFO):
        model, files = load(
            str(path), section="actor", implementation="eager", packed=False, dtype=torch.float32, in_parts=True
        )
    assert files is None
    assert "as a whole: it has no safetensors files" in caplog.text
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_a_damaged_file_is_an_error_that_names_the_model(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    (path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match=r"actor\.path is .* no model can be loaded from it"):
        load(str(path), section="actor", implementation="eager", packed=False, dtype=torch.float32, in_parts=True)


def test_ranks_that_read_their_parts_hold_no_whole_model(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "model", tied=False, **LARGE)
    save_tiny_model(path / "tiny", tied=False)
    # As published: in half the bytes. transformers does not copy tensors that have their type already.
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(path / "model.safetensors").items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    size = 4 * sum(tensor.numel() for tensor in tensors.values())
    script = Path(loading_memory.__file__)
    python_path = os.pathsep.join([str(script.parent.parent), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [*TORCHRUN, str(script), str(path), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    grown = [int((tmp_path / str(rank)).read_text()) / size for rank in range(2)]
    assert max(grown) < 0.7  # half of the model, and the tensor that is being read
