"""Two ranks over gloo give the results of one rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from areal_trainer.batch import pack
from support import policy_ranks
from support.policy_ranks import load, make_policy, train, weights
from support.tiny_policy import plain_logprobs, plain_model, random_trajectories, save_tiny_model

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, the output of two ranks, and the checkpoint of one rank in ``of_one``."""
    folder = tmp_path_factory.mktemp("ranks")
    save_tiny_model(folder / "model")
    policy = make_policy(folder / "model", "adam")
    train(policy, random_trajectories())
    dcp.save(policy.state_dict(), checkpoint_id=folder / "of_one", no_dist=True)
    train(policy, random_trajectories())
    torch.save(weights(policy), folder / "continued.pt")
    script = Path(policy_ranks.__file__)
    path = os.pathsep.join([str(script.parent.parent), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [*TORCHRUN, str(script), str(folder / "model"), str(folder)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", ["uneven", "empty", "sequence_level", "checkpointed", "adam", "lora"])
def test_two_ranks_give_the_update_of_one(folder: Path, name: str) -> None:
    policy = make_policy(folder / "model", name)
    before = weights(policy)
    numbers = train(policy, random_trajectories())
    assert_same(torch.load(folder / f"{name}.pt"), weights(policy))
    assert any(not torch.equal(tensor, before[key]) for key, tensor in weights(policy).items())
    of_two = json.loads((folder / f"{name}.json").read_text())
    assert of_two == pytest.approx(numbers, abs=2e-5, rel=1e-5)


def test_one_rank_resumes_from_the_checkpoint_of_two(folder: Path) -> None:
    policy = make_policy(folder / "model", "adam")
    load(policy, folder / "of_two")
    train(policy, random_trajectories())
    assert_same(weights(policy), torch.load(folder / "of_two_continued.pt"))


def test_moments_in_bfloat16_are_those_of_one_rank_to_their_precision(folder: Path) -> None:
    policy, of_two = (make_policy(folder / "model", "compact_adam") for _ in range(2))
    train(policy, random_trajectories())
    assert_same(torch.load(folder / "compact_adam.pt"), weights(policy), 1e-2 * 2**-7)  # lr × the rounding of a moment
    load(of_two, folder / "compact_of_two")
    exact, found = (one.state_dict()["optimizer"]["state"] for one in (policy, of_two))
    for name, tensors in exact.items():
        for key in ("exp_avg", "exp_avg_sq"):
            assert found[name][key].dtype == torch.bfloat16
            torch.testing.assert_close(found[name][key], tensors[key], rtol=2**-7, atol=1e-9)


def test_two_ranks_resume_from_the_checkpoint_of_one(folder: Path) -> None:
    assert_same(torch.load(folder / "of_one_continued.pt"), torch.load(folder / "continued.pt"))


def test_two_ranks_save_a_checkpoint_that_transformers_loads(folder: Path) -> None:
    trajectories = random_trajectories()
    policy = make_policy(folder / "model", "adam")
    load(policy, folder / "of_two")
    model = plain_model(folder / "hf")
    with torch.no_grad():
        expected = torch.cat([plain_logprobs(model, trajectory) for trajectory in trajectories])
    torch.testing.assert_close(policy.logprobs(pack(trajectories)), expected, atol=1e-5, rtol=0)


def test_bfloat16_is_close_to_float32_and_keeps_float32_masters(folder: Path) -> None:
    of_two = json.loads((folder / "bfloat16.json").read_text())
    policy = make_policy(folder / "model", "bfloat16", dtype="float32")
    numbers = train(policy, random_trajectories())
    assert of_two["grpo_actor/new_logp/avg"] == pytest.approx(numbers["grpo_actor/new_logp/avg"], rel=0.02)
    assert of_two["grpo_actor/grad_norm"] == pytest.approx(numbers["grpo_actor/grad_norm"], rel=0.2)
    assert all(tensor.dtype == torch.bfloat16 for tensor in torch.load(folder / "bfloat16.pt").values())


def test_frozen_bfloat16_weights_and_float32_adapters_are_sharded_together(folder: Path) -> None:
    of_two = json.loads((folder / "lora_bfloat16.json").read_text())
    policy = make_policy(folder / "model", "lora", dtype="float32", optimizer=policy_ranks.SGD)
    numbers = train(policy, random_trajectories())
    assert of_two["grpo_actor/new_logp/avg"] == pytest.approx(numbers["grpo_actor/new_logp/avg"], rel=0.02)
    assert of_two["grpo_actor/grad_norm"] == pytest.approx(numbers["grpo_actor/grad_norm"], rel=0.2)
    assert all(tensor.dtype == torch.bfloat16 for tensor in torch.load(folder / "lora_bfloat16.pt").values())
    assert (folder / "lora_bfloat16.types").read_text() == "torch.float32"
