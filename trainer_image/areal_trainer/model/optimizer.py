"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from areal_api.actor import OptimizerConfig
from areal_trainer.model.compact_adamw import CompactAdamW
from areal_trainer.ranks import Ranks

AnyTensor = TypeVar("AnyTensor", bound=Tensor)


@dataclass(frozen=True)
class OptimizerStep:
    """Outcome of one minibatch."""

    norm: float  # of the gradient; NaN without tokens
    rate: float  # learning rate, after scaling
    scale: float  # by the trust region
    tokens: int
    done: bool  # whether the parameters changed


def make_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW (fused) or SGD over all parameters."""
    groups: list[dict[str, Any]] = [{"params": together} for together in by_mesh(parameters)]
    if config.type == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, weight_decay=config.weight_decay)
    options: dict[str, Any] = {
        "lr": config.lr,
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    if config.offload or config.state_dtype != "float32":
        return CompactAdamW(groups, dtype=getattr(torch, config.state_dtype), offload=config.offload, **options)
    return torch.optim.AdamW(groups, fused=True, **options)


def by_mesh(tensors: Iterable[AnyTensor]) -> list[list[AnyTensor]]:
    """The tensors that are sharded over the same ranks together: torch's operations on lists take no others."""
    found: dict[object, list[AnyTensor]] = {}
    for tensor in tensors:
        found.setdefault(tensor.device_mesh if isinstance(tensor, DTensor) else None, []).append(tensor)
    return list(found.values())


def total_norm(gradients: Iterable[Tensor]) -> float:
    """The 2-norm of all gradients, the same number on every rank. Collective.

    DTensor reduces over one dimension of a mesh after the other, and ranks may then round differently.
    """
    ranks = Ranks.current()
    by_copies: dict[int, list[Tensor]] = {}
    for gradient in gradients:
        local, shards = gradient, 1
        if isinstance(gradient, DTensor):
            local, mesh = gradient.to_local(), gradient.device_mesh
            divides = [not placement.is_replicate() for placement in gradient.placements]
            shards = math.prod(size for size, divided in zip(mesh.shape, divides, strict=True) if divided)
        by_copies.setdefault(ranks.world_size // shards, []).append(local)
    squares = [float(get_total_norm(parts)) ** 2 / copies for copies, parts in by_copies.items()]
    total = ranks.sum_over_all(torch.tensor([sum(squares)], dtype=torch.float64))
    return math.sqrt(float(total))


def learning_rate(config: OptimizerConfig, *, step: int, total_steps: int) -> float:
    """Learning rate of training step ``step`` (from 0).

    Rises linearly over the first ``warmup_steps_proportion`` of the steps and reaches ``lr`` in the last of them. Then
    it stays constant, or decays linearly or by a half cosine to ``min_lr_ratio · lr`` after the last step.
    """
    warmup = round(config.warmup_steps_proportion * total_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.lr_scheduler_type == "constant":
        return config.lr
    done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if config.lr_scheduler_type == "linear":
        share = 1 - done
    else:
        share = (1 + math.cos(math.pi * done)) / 2
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * share)


def steps_summary(steps: Sequence[OptimizerStep]) -> dict[str, float]:
    """Statistics of the minibatches of an update."""
    norms = [step.norm for step in steps if math.isfinite(step.norm)]
    numbers = {
        "lr": sum(step.rate for step in steps) / len(steps),
        "lr_scale": sum(step.scale for step in steps) / len(steps),
        "update_successful": sum(step.done for step in steps) / len(steps),
        "nonfinite_minibatches": float(sum(step.tokens > 0 and not math.isfinite(step.norm) for step in steps)),
    }
    if norms:
        numbers["grad_norm"] = sum(norms) / len(norms)
    return numbers
