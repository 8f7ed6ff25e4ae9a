"""Ranks of gloo that divide weights and tokens give the results of one rank."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from areal_trainer.checkpoint import load_state
from areal_trainer.ranks import joined
from support import parallel_ranks
from support.parallel_ranks import CASES, layout, make_policy
from support.policy_ranks import train, weights
from support.tiny_policy import random_trajectories, save_tiny_model

# With 4 heads and 2 key-value heads: c4 gives ranks the same key-value heads, /2 keeps two copies of the model.
LAYOUTS = ["d1c2", "d1t2", "d2t2", "d2c2", "d1t2c2", "d1c4", "d2t2/2", "d2c2/4"]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, and what one rank found, in ``one``."""
    folder = tmp_path_factory.mktemp("parallel")
    save_tiny_model(folder / "model")
    run(folder, "d1")
    (folder / "d1").rename(folder / "one")
    return folder


@pytest.fixture(scope="module", params=LAYOUTS)
def found(one: Path, request: pytest.FixtureRequest) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """The folder of a layout, what its ranks found, and what one rank found."""
    text: str = request.param
    run(one, text)
    folder = one / text.replace("/", "r")
    return folder, torch.load(folder / "found.pt"), torch.load(one / "one/found.pt")


def run(folder: Path, text: str) -> None:
    script = Path(parallel_ranks.__file__)
    path = os.pathsep.join([str(script.parent.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "model"), str(folder), text],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-6, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_a_layout_gives_log_probs_gradients_and_weights_of_one_rank(
    found: tuple[Path, dict[str, Any], dict[str, Any]],
) -> None:
    _, ranks, one = found
    for name, case in CASES.items():
        assert_same(ranks[name]["weights"], one[name]["weights"])
        # The norm of the gradient is among the numbers.
        assert ranks[name]["numbers"] == pytest.approx(one[name]["numbers"], abs=2e-5, rel=1e-5)
        shares, whole = ranks[name]["logprobs"], one[name]["logprobs"][0]
        sequences = whole.split([len(trajectory) for trajectory in random_trajectories()])
        first = torch.cat(sequences[: case["first"]] if len(shares) > 1 else sequences)
        torch.testing.assert_close(shares[0], first, atol=1e-5, rtol=0)


def test_checkpoints_are_read_by_one_rank_and_by_the_layout(
    found: tuple[Path, dict[str, Any], dict[str, Any]], one: Path
) -> None:
    folder, ranks, of_one = found
    assert_same(ranks["continued"], of_one["continued"])
    assert_same(ranks["resumed"], of_one["continued"])  # from one rank's checkpoint
    policy = make_policy(one / "model", "adam", layout("d1")[1])
    with joined("cpu"):
        load_state(folder / "recover/step1", policy)
        train(policy, random_trajectories())
    assert_same(weights(policy), of_one["continued"])
