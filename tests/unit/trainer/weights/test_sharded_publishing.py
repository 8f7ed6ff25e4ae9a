"""What several ranks publish together is what one rank publishes, or nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from areal_trainer.weights.disk import latest_published, verify_published
from support import publishing_ranks
from support.publishing_ranks import DIES, FAILURES, SHARD_BYTES
from support.tiny_policy import plain_model, save_tiny_model

# Rows that 4 ranks do not divide, and as in test_parallel_ranks.py two copies of the model, divided layers and experts
# (e2).
LAYOUTS = {
    "qwen3": ["d2", "d4", "d4/2:bfloat16", "d1t2", "d2t2", "d4/2:lora"],
    "qwen3_moe": ["d4", "d4/2:bfloat16", "d2e2", "d4e2", "d4e2/2:bfloat16"],
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 14}
CASES = [(kind, text) for kind, texts in LAYOUTS.items() for text in texts]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the kind of model the output of all cases, each in a folder of its name."""
    found: dict[str, Path] = {}
    for kind, texts in LAYOUTS.items():
        folder = found[kind] = tmp_path_factory.mktemp(kind)
        size = EXPERTS if kind == "qwen3_moe" else {"intermediate_size": 46}
        save_tiny_model(folder / "model", kind, tied=False, **size)
        variants = sorted({text.partition(":")[2] for text in texts})
        cases = [*(f"d1:{variant}" for variant in variants), *texts, *(FAILURES if kind == "qwen3" else ())]
        script = Path(publishing_ranks.__file__)
        path = os.pathsep.join([str(script.parent.parent), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, str(script), str(folder / "model"), str(folder), *cases],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return found


def of_case(folder: Path, text: str) -> Path:
    return folder / text.replace("/", "r")


def tensors_of(version: Path) -> dict[str, torch.Tensor]:
    """The tensors of a published version, each read from the file that the index names."""
    index = json.loads((version / "model.safetensors.index.json").read_text())
    files = {file: load_file(version / file) for file in set(index["weight_map"].values())}
    tensors = {name: files[file][name] for name, file in index["weight_map"].items()}
    assert sum(map(len, files.values())) == len(tensors)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    return tensors


def same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert tensor.shape == second[name].shape, name
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize(("kind", "text"), CASES, ids=map(":".join, CASES))
def test_ranks_publish_the_tensors_of_one_rank_bit_for_bit(folders: dict[str, Path], kind: str, text: str) -> None:
    folder = of_case(folders[kind], text)
    assert (folder / "problems.txt").read_text() == ""
    version = folder / "weights/v1"
    verify_published(version)
    tensors = tensors_of(version)
    one = of_case(folders[kind], f"d1:{text.partition(':')[2]}")
    same_bits(tensors, tensors_of(one / "weights/v1"))
    same_bits(torch.load(folder / "full.pt"), tensors)  # what a broadcast sends
    assert tensors.keys() == load_file(folders[kind] / "model/model.safetensors").keys()
    assert [path.name for path in folder.glob("weights/.*")] == []


@pytest.mark.parametrize(("kind", "text"), [("qwen3", "d4"), ("qwen3_moe", "d4"), ("qwen3", "d2t2")])
def test_every_rank_writes_its_part(folders: dict[str, Path], kind: str, text: str) -> None:
    version = of_case(folders[kind], text) / "weights/v1"
    tensors = tensors_of(version)
    weight_map = json.loads((version / "model.safetensors.index.json").read_text())["weight_map"]
    loads = dict.fromkeys(range(1, 5), 0)
    for name, file in weight_map.items():
        loads[int(file.split("-")[1])] += tensors[name].nbytes
    layers = [tensor.nbytes for name, tensor in tensors.items()]
    largest = max(layers) * (EXPERTS["num_experts"] * 2 if kind == "qwen3_moe" else 1)  # in memory one tensor
    assert min(loads.values()) > 0
    assert max(loads.values()) <= sum(loads.values()) / 4 + largest
    assert len(list(version.glob("model-00001-*"))) > 1  # files are limited on every rank
    assert max(path.stat().st_size for path in version.glob("model-*")) < SHARD_BYTES / 4 + max(layers) + 8192


def test_transformers_loads_what_ranks_have_published(folders: dict[str, Path]) -> None:
    version = of_case(folders["qwen3_moe"], "d4") / "weights/v1"
    loaded, plain = plain_model(version), plain_model(folders["qwen3_moe"] / "model")
    assert loaded.state_dict().keys() == plain.state_dict().keys()
    for name, tensor in plain.named_parameters():
        torch.testing.assert_close(dict(loaded.named_parameters())[name], tensor * 1.001 + 0.003)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("full-disk", r"OSError: \[Errno 28\] No space left on device: .*model-00002-0000\d.safetensors"),
        ("not-finite", r"NonFiniteWeightsError: .* holds values from nan"),
        ("lost", r"OSError: rank 1 wrote \d+ bytes to .*model-00002-.*, but rank 0 finds None; all nodes of the"),
        ("foreign", r"OSError: .*model-00009-00001.safetensors was written by no rank"),
    ],
)
def test_a_failure_of_one_rank_is_raised_by_all_and_publishes_nothing(
    folders: dict[str, Path], case: str, message: str
) -> None:
    folder = folders["qwen3"] / case
    assert (folder / "problems.txt").read_text() == ""
    for rank in range(2):
        said = (folder / f"{rank}.txt").read_text()
        assert re.match(message, said), said
    assert latest_published(folder) == (1, folder / "weights/v1")
    verify_published(folder / "weights/v1")


def test_a_rank_that_dies_while_it_writes_leaves_no_version(folders: dict[str, Path]) -> None:
    folder = folders["qwen3"] / "dies"
    assert f"rank 1 exited with {DIES}" in (folder / "problems.txt").read_text()
    assert not (folder / "0.txt").exists()  # it has not returned
    assert latest_published(folder) == (1, folder / "weights/v1")
    verify_published(folder / "weights/v1")


def test_a_file_of_another_version_among_the_published_ones_is_refused_by_name(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    version = of_case(folders["qwen3"], "d2") / "weights/v1"
    copy = tmp_path / "v1"
    shutil.copytree(version, copy)
    name = sorted(path.name for path in copy.glob("model-00002-*"))[0]
    (copy / name).rename(copy / "model-00002-00077.safetensors")
    with pytest.raises(ValueError, match=r"model-00002-00077\.safetensors is not in the manifest"):
        verify_published(copy)
    (copy / "model-00002-00077.safetensors").unlink()
    with pytest.raises(ValueError, match=rf"{name} has None bytes"):
        verify_published(copy)
