"""Gradients of the auxiliary loss alone on two ranks: ``python balance_ranks.py MODEL OUT``. Forks the ranks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from areal_api.actor import ParallelConfig
from areal_trainer.batch import pack
from areal_trainer.model.policy import Policy
from areal_trainer.ranks import joined
from areal_trainer.trajectory import Trajectory
from support.parallel_ranks import fork_ranks, layout, share
from support.policy_ranks import weights
from support.tiny_policy import actor_config, random_trajectories

FIRST = 7  # sequences of the first share
LAYOUTS = ("d2", "d1c2")
SGD = {"type": "sgd", "lr": 1.0, "weight_decay": 0.0, "gradient_clipping": 1e9}


def gradient_step(
    model: Path, trajectories: list[Trajectory], *, parallel: ParallelConfig | None = None, **changes: Any
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The change of the weights by one step whose only loss is the auxiliary one, and the statistics."""
    values = {"optimizer": SGD, "router_aux_loss_coef": 1.0, "recompute_logprob": True} | changes
    values["parallel"] = (parallel or ParallelConfig()).model_dump()
    policy = Policy(actor_config(model, **values), device="cpu", total_steps=10, seed=1)
    policy.check_exactness()
    before, batch = weights(policy), pack(trajectories)
    numbers = policy.update(batch, advantages_T=torch.zeros(len(batch.input_ids_T)))
    return {name: tensor - before[name] for name, tensor in weights(policy).items()}, numbers


def run(model: Path, out: Path, text: str) -> None:
    _, parallel = layout(text)
    with joined("cpu", parallel) as ranks:
        found = gradient_step(model, share(random_trajectories(), ranks, FIRST), parallel=parallel)
        if ranks.is_first:
            torch.save(found, out / f"{text}.pt")


if __name__ == "__main__":
    for text in LAYOUTS:
        if problems := fork_ranks(2, lambda text=text: run(Path(sys.argv[1]), Path(sys.argv[2]), text)):  # type: ignore[misc]
            sys.exit("\n".join([text, *problems]))
