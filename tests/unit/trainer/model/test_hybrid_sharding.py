"""Two copies of the model over four ranks of gloo, each sharded over two, give the results of one rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from areal_trainer.checkpoint import load_state
from areal_trainer.model.language_model import node_count
from areal_trainer.ranks import joined
from support import policy_ranks
from support.policy_ranks import HYBRID, make_policy, train, weights
from support.tiny_policy import random_trajectories, save_tiny_model

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, and the output of four ranks."""
    folder = tmp_path_factory.mktemp("hybrid")
    save_tiny_model(folder / "model")
    script = Path(policy_ranks.__file__)
    path = os.pathsep.join([str(script.parent.parent), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [*TORCHRUN, str(script), str(folder / "model"), str(folder), "--hybrid"],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-6, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", HYBRID)
def test_two_copies_of_two_shards_give_the_update_of_one_rank(folder: Path, name: str) -> None:
    policy = make_policy(folder / "model", name)
    numbers = train(policy, random_trajectories())
    assert_same(torch.load(folder / f"{name}.pt"), weights(policy))
    of_four = json.loads((folder / f"{name}.json").read_text())
    assert of_four.pop("meshes") == [[2, 2]]
    assert of_four == pytest.approx(numbers, abs=2e-5, rel=1e-5)  # the norm of the gradient among them


def test_one_rank_resumes_from_the_checkpoint_of_two_copies(folder: Path) -> None:
    policy = make_policy(folder / "model", HYBRID[-1])
    with joined("cpu"):
        load_state(folder / "recover/step1", policy)
    assert_same(weights(policy), torch.load(folder / f"{HYBRID[-1]}.pt"))
    train(policy, random_trajectories())
    assert_same(weights(policy), torch.load(folder / "continued.pt"))  # so the optimizer's state is the same


def test_nodes_are_counted_by_their_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for local, nodes in (("8", 2), ("16", 1), ("5", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
        assert node_count(16) == nodes
