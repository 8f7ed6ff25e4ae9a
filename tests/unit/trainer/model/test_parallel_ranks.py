"""Ranks of gloo that divide weights and tokens give the results of one rank."""

from __future__ import annotations

import os
import re
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
# With e2 two ranks divide the experts; of d4e2 two ranks have the same ones, as shards or as copies.
LAYOUTS = [
    *(("qwen3", text) for text in ("d1c2", "d1t2", "d2t2", "d2c2", "d1t2c2", "d1c4", "d2t2/2", "d2c2/4")),
    *(("qwen3_moe", text) for text in ("d2", "d1c2", "d2e2", "d1c2e2", "d4e2", "d4e2/2")),
    ("mixtral", "d2e2"),
]
OF_PASSES = re.compile("/expert|without_replay")
EXPERTS: dict[str, dict[str, Any]] = {
    # Three experts for each of two ranks, which two shards do not divide.
    "qwen3_moe": {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "tied": False},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "tied": False},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the kind of model its folder: the model, and what one rank found, in ``one``."""
    found: dict[str, Path] = {}
    for kind in dict(LAYOUTS):
        folder = found[kind] = tmp_path_factory.mktemp(kind)
        save_tiny_model(folder / "model", kind, **EXPERTS.get(kind, {}))
        run(folder, "d1")
        (folder / "d1").rename(folder / "one")
    return found


@pytest.fixture(scope="module", params=LAYOUTS, ids=":".join)
def found(models: dict[str, Path], request: pytest.FixtureRequest) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """The folder of a layout, what its ranks found, and what one rank found."""
    kind, text = request.param
    run(models[kind], text)
    folder = models[kind] / text.replace("/", "r")
    return folder, torch.load(folder / "found.pt"), torch.load(models[kind] / "one/found.pt")


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
        # The norm of the gradient is among the numbers. Not those of experts, which count the tokens that passes have,
        # shared prompts once, nor those of a rank's first pass.
        numbers = {key: value for key, value in ranks[name]["numbers"].items() if not OF_PASSES.search(key)}
        assert numbers == pytest.approx({key: one[name]["numbers"][key] for key in numbers}, abs=2e-5, rel=1e-5)
        shares, whole = ranks[name]["logprobs"], one[name]["logprobs"][0]
        sequences = whole.split([len(trajectory) for trajectory in random_trajectories()])
        first = torch.cat(sequences[: case["first"]] if len(shares) > 1 else sequences)
        torch.testing.assert_close(shares[0], first, atol=1e-5, rtol=0)


def test_checkpoints_are_read_by_one_rank_and_by_the_layout(
    found: tuple[Path, dict[str, Any], dict[str, Any]],
) -> None:
    folder, ranks, of_one = found
    assert_same(ranks["continued"], of_one["continued"])
    assert_same(ranks["resumed"], of_one["continued"])  # from one rank's checkpoint
    policy = make_policy(folder.parent / "model", "adam", layout("d1")[1])
    with joined("cpu"):
        load_state(folder / "recover/step1", policy)
        train(policy, random_trajectories())
    assert_same(weights(policy), of_one["continued"])
