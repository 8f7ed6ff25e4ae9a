"""Mixture of experts: the routers' precision, statistics of how evenly they use the experts, and a loss for that."""

# L layers with experts, E experts of each, P tokens of a pass, K chosen experts of a token

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from areal_trainer.ranks import Ranks

LOAD, UNUSED = "expert_load_max", "experts_unused"


def routers(model: nn.Module) -> list[nn.Module]:
    """The modules that choose experts: they have a weight of their own, a row for each expert."""
    return [
        module
        for module in model.modules()
        if type(module).__name__.endswith("Router") and isinstance(getattr(module, "weight", None), nn.Parameter)
    ]


class ExpertLoad:
    """Counts the tokens that each expert gets in training passes."""

    def __init__(self, model: nn.Module) -> None:
        found = routers(model)
        self._counts_LE = [torch.zeros(expert_count(router), dtype=torch.float64) for router in found]
        for layer, router in enumerate(found):
            router.register_forward_hook(self._counting(layer))

    def take(self) -> dict[str, float]:
        """Statistics since the last call, averaged over layers; empty without experts or tokens. Collective.

        ``expert_load_max``: tokens of the busiest expert ÷ mean; ``experts_unused``: share of experts without tokens.
        """
        if not self._counts_LE:
            return {}
        loads, unused = [], []
        for counts_E in self._counts_LE:
            total_E = Ranks.current().sum_over_all(counts_E.clone())
            counts_E.zero_()
            if total_E.sum() > 0:
                loads.append(float(total_E.max() / total_E.mean()))
                unused.append(float((total_E == 0).double().mean()))
        return {LOAD: sum(loads) / len(loads), UNUSED: sum(unused) / len(unused)} if loads else {}

    def _counting(self, layer: int) -> Any:
        def count(module: nn.Module, arguments: Any, output: Any) -> None:
            if module.training:
                counts_E = self._counts_LE[layer]
                counts_E += torch.bincount(chosen_experts(output).flatten().cpu(), minlength=len(counts_E)).double()

        return count


def expert_count(router: nn.Module) -> int:
    """E of a router."""
    weight = router.weight
    assert isinstance(weight, Tensor)
    return int(weight.shape[0])


def chosen_experts(output: Any) -> Tensor:
    """The numbers of the chosen experts among a router's outputs: the only integers."""
    found = [one for one in output if isinstance(one, Tensor) and not one.is_floating_point()]
    assert len(found) == 1, "the router returns no numbers of experts"
    return found[0]


class LoadBalance:
    """The auxiliary loss for an even load of the experts: E · Σ_e f_e · p_e, as transformers' load_balancing_loss_func
    computes it over the tokens of a pass (Switch Transformer, https://arxiv.org/abs/2101.03961, equations 4 to 6).

    f_e is the number of times that expert e is chosen, and p_e the sum of its probabilities, ÷ tokens · layers.
    """

    def __init__(self, model: nn.Module, *, section: str) -> None:
        """Before sharding. Raises ``ValueError`` for a model that the loss is not defined for."""
        found, name = routers(model), type(model).__name__
        if not found or not hasattr(sys.modules[type(model).__module__], "load_balancing_loss_func"):
            raise ValueError(
                f"{section}.router_aux_loss_coef is above 0, but transformers defines no load-balancing loss for "
                f"{name}; set it to 0"
            )
        counts = {expert_count(router) for router in found}
        if len(counts) > 1:
            raise ValueError(
                f"{section}.router_aux_loss_coef: {name} has layers with different numbers of experts; set it to 0"
            )
        (self._experts,) = counts
        self._real_P: Tensor | None = None
        self._seen: list[tuple[Tensor, Tensor]] | None = None  # logits [P, E] and choices [P, K] of each layer
        for router in found:
            router.forward = self._recording(router.forward)  # type: ignore[method-assign]

    def start(self, real_P: Tensor | None) -> None:
        """Before a pass with gradients: record its routers. ``real_P``: the tokens that are not padding; None: all."""
        self._real_P = real_P
        self._seen = [] if torch.is_grad_enabled() else None

    def loss(self, group: dist.ProcessGroup | None) -> Tensor:
        """The loss of the recorded pass, whose tokens the ranks of ``group`` divide.

        It is the same on all of them; the backward pass takes the gradient of this rank's part.
        """
        assert self._seen, "no pass was recorded"
        seen, self._seen = self._seen, None  # a backward pass with gradient checkpointing runs routers again
        tokens = torch.zeros((), device=seen[0][0].device)
        chosen_E, probabilities_E = (torch.zeros(self._experts, device=tokens.device) for _ in range(2))
        for logits_PE, experts_PK in seen:
            real_P = torch.ones(len(logits_PE), device=tokens.device)
            if self._real_P is not None:
                real_P = self._real_P.to(real_P)
            times_PK = real_P[:, None].expand_as(experts_PK)
            chosen_E = chosen_E.scatter_add(0, experts_PK.flatten(), times_PK.flatten())
            probabilities_E = probabilities_E + real_P @ logits_PE.float().softmax(-1)
            tokens = tokens + real_P.sum()
        if group is not None:
            dist.all_reduce(chosen_E, group=group)
            dist.all_reduce(tokens, group=group)
            probabilities_E = _SummedOverRanks.apply(probabilities_E, group)
        return self._experts * (chosen_E / tokens * probabilities_E / tokens).sum()

    def _recording(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            if self._seen is not None:
                logits = [one for one in output if one.is_floating_point() and one.shape[-1] == self._experts]
                self._seen.append((logits[0], chosen_experts(output)))
            return output

        return recorded


class _SummedOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None
