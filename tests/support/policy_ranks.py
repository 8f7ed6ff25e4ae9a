"""Policy scenarios that tests run on two ranks and compare with one: ``torchrun … policy_ranks.py MODEL OUT``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from areal_api.generation import GenerationHyperparameters
from areal_trainer.batch import pack
from areal_trainer.checkpoint import LoopState, RunState
from areal_trainer.grpo import compute_advantages
from areal_trainer.model.policy import Policy
from areal_trainer.ranks import Ranks, joined
from areal_trainer.recovery_writer import RecoveryWriter
from areal_trainer.trajectory import Trajectory
from support.tiny_policy import actor_config, random_trajectories

NORM = {"mean_level": "group", "std_level": "group"}
SGD = {
    "type": "sgd",
    "lr": 0.1,
    "gradient_clipping": 0.5,
}
SCENARIOS: dict[str, dict[str, Any]] = {
    # name → number of sequences on rank 0, and configuration changes
    "uneven": {"first": 9, "optimizer": SGD, "mb_spec": {"max_tokens_per_mb": 40}},
    "empty": {"first": 12, "optimizer": SGD},
    "sequence_level": {"first": 5, "optimizer": SGD, "importance_sampling_level": "sequence"},
    "checkpointed": {"first": 6, "optimizer": SGD, "gradient_checkpointing": True},
    "adam": {"first": 7, "optimizer": {"lr": 1e-2, "eps": 1e-2}},
    "compact_adam": {
        "first": 7,
        "optimizer": {"lr": 1e-2, "eps": 1e-2, "beta2": 0.95, "state_dtype": "bfloat16", "offload": True},
    },
    "bfloat16": {"first": 6, "optimizer": SGD, "dtype": "bfloat16"},
    "lora": {"first": 7, "optimizer": {"lr": 1e-2, "eps": 1e-2}, "lora": {"rank": 4}},
    "lora_bfloat16": {"first": 6, "optimizer": SGD, "dtype": "bfloat16", "lora": {"rank": 4}},
}


HYBRID = ("uneven", "adam")


def make_policy(model: Path, name: str, **changes: Any) -> Policy:
    settings = {key: value for key, value in SCENARIOS[name].items() if key != "first"}
    norms = {"reward_norm": NORM, "adv_norm": {"mean_level": "batch", "std_level": "batch"}}
    config = actor_config(model, use_decoupled_loss=True, **(norms | settings | changes))
    return Policy(config, device="cpu", total_steps=10, seed=1)


def train(policy: Policy, trajectories: Sequence[Trajectory], *, steps: int = 1) -> dict[str, float]:
    """Run steps on the same data; return the statistics of the last."""
    batch = pack(trajectories)
    numbers: dict[str, float] = {}
    reduce = Ranks.current().reduce_sum
    for _ in range(steps):
        prox_logp_T = policy.logprobs(batch)
        advantages_T, numbers = compute_advantages(
            batch, policy.config, GenerationHyperparameters(), logp_T=prox_logp_T, ref_logp_T=None, reduce=reduce
        )
        numbers |= policy.update(batch, advantages_T=advantages_T, prox_logp_T=prox_logp_T)
    return numbers


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.named_full_tensors()}


def load(policy: Policy, directory: Path) -> None:
    state = policy.state_dict()
    dcp.load(state, checkpoint_id=directory)
    policy.load_state_dict(state)


def _my_part(trajectories: list[Trajectory], first: int) -> list[Trajectory]:
    """The first trajectories on rank 0, and the rest spread over the others."""
    rank, others = dist.get_rank(), dist.get_world_size() - 1
    return trajectories[:first] if rank == 0 else trajectories[first:][rank - 1 :: others]


def train_hybrid(model: Path, out: Path) -> None:
    """On four ranks: two copies of the model, each sharded over two ranks, in the scenarios of ``HYBRID``."""
    with joined("cpu") as ranks:
        for name in HYBRID:
            policy = make_policy(model, name, fsdp={"replicas": 2})
            numbers = train(policy, _my_part(random_trajectories(), SCENARIOS[name]["first"]))
            full = weights(policy)
            if ranks.is_first:
                meshes = {parameter.device_mesh.shape for parameter in policy.model.parameters()}
                torch.save(full, out / f"{name}.pt")
                (out / f"{name}.json").write_text(json.dumps(numbers | {"meshes": sorted(meshes)}))
        writer = RecoveryWriter(out, keep=1)
        writer.start(1, policy, LoopState(RunState(step=1), {}, {}) if ranks.is_first else None)
        train(policy, _my_part(random_trajectories(), SCENARIOS[name]["first"]))  # while it is written
        writer.wait()
        full = weights(policy)
        if ranks.is_first:
            torch.save(full, out / "continued.pt")


def main(model: Path, out: Path) -> None:
    with joined("cpu") as ranks:
        trajectories = random_trajectories()
        for name, scenario in SCENARIOS.items():
            policy = make_policy(model, name)
            numbers = train(policy, _my_part(trajectories, scenario["first"]))
            full = weights(policy)
            if ranks.is_first:
                torch.save(full, out / f"{name}.pt")
                types = {str(parameter.dtype) for parameter in policy.model.parameters() if parameter.requires_grad}
                (out / f"{name}.json").write_text(json.dumps(numbers))
                (out / f"{name}.types").write_text(" ".join(sorted(types)))
        # Save the Adam policy after one step, then continue.
        policy = make_policy(model, "adam")
        train(policy, _my_part(trajectories, 7))
        dcp.save(policy.state_dict(), checkpoint_id=out / "of_two")
        policy.save_hf(out / "hf")
        train(policy, _my_part(trajectories, 7))
        full = weights(policy)
        if ranks.is_first:
            torch.save(full, out / "of_two_continued.pt")
        policy = make_policy(model, "compact_adam")
        train(policy, _my_part(trajectories, 7))
        dcp.save(policy.state_dict(), checkpoint_id=out / "compact_of_two")
        policy = make_policy(model, "adam")
        policy.check_exactness()  # as a run does before it resumes
        policy.logprobs(pack(_my_part(trajectories, 7)))
        load(policy, out / "of_one")
        train(policy, _my_part(trajectories, 7))
        full = weights(policy)
        if ranks.is_first:
            torch.save(full, out / "of_one_continued.pt")


if __name__ == "__main__":
    (train_hybrid if "--hybrid" in sys.argv else main)(Path(sys.argv[1]), Path(sys.argv[2]))
