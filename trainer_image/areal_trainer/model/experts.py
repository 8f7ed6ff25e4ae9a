"""Mixture of experts: the routers' precision, and statistics of how evenly they use the experts."""

# L layers with experts, E experts of each

from __future__ import annotations

from typing import Any

import torch
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
