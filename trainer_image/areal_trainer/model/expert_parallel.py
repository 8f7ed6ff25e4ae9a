"""Expert parallelism: each rank of a group holds some experts of every layer, and tokens are sent to their experts.

An all-to-all sends the hidden state of a token to the ranks of its experts, and another one the results back. The
experts of a rank are computed as transformers computes all of them. FSDP shards them further, over the ranks that hold
the same ones.
"""

# T tokens of this rank, K experts of a token, S = T · K, R tokens that this rank receives, E experts, H hidden size

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import PreTrainedModel

from areal_trainer.model.experts import expert_count, routers

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


def experts_of(model: PreTrainedModel, size: int) -> list[nn.Module]:
    """The modules with the experts of each layer.

    Raises ``ValueError`` for a model that has none, or whose experts ``size`` ranks cannot divide.
    """
    field, name = f"actor.parallel.expert is {size}", type(model).__name__
    counts = {expert_count(router) for router in routers(model)}
    found = [module for module in model.modules() if type(module).__name__.endswith("Experts")]
    if not found or len(counts) != 1 or len(found) != len(routers(model)):
        raise ValueError(f"{field}, but {name} has no routers with experts that can be divided; set it to 1")
    (count,) = counts
    if count % size:
        raise ValueError(f"{field}, which does not divide the {count} experts of {name}; choose a divisor")
    for module in found:
        shapes = [parameter.shape for parameter in module.parameters()]
        if getattr(module, "num_experts", None) != count or any(len(s) < 2 or s[0] != count for s in shapes):
            raise ValueError(f"{field}, but the experts of {name} are not one tensor for all of a layer; set it to 1")
    return found


def divide_experts(experts: nn.Module, mesh: DeviceMesh) -> None:
    """Keep this rank's share of the experts of a layer, as DTensors over the one-dimensional ``mesh``."""
    for name, parameter in list(experts.named_parameters(recurse=False)):
        mine = distribute_tensor(parameter.data, mesh, [Shard(0)], src_data_rank=None)
        experts.register_parameter(name, nn.Parameter(mine, requires_grad=parameter.requires_grad))
    assert isinstance(experts.num_experts, int)
    experts.num_experts //= mesh.size()
    experts.forward = _over_ranks(experts, experts.forward, mesh)  # type: ignore[method-assign]


def _over_ranks(experts: nn.Module, compute: Forward, mesh: DeviceMesh) -> Forward:
    group, size = mesh.get_group(), mesh.size()

    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        tokens, top_k = top_k_index.shape
        assert isinstance(experts.num_experts, int)
        expert_S, here = top_k_index.flatten(), experts.num_experts
        order_S = torch.argsort(expert_S // here, stable=True)
        sent = torch.bincount(expert_S // here, minlength=size)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=group)
        splits = (sent.tolist(), received.tolist())
        local_R = _exchanged((expert_S % here)[order_S], group, splits)
        hidden_RH: Tensor = _Exchange.apply(hidden_states[order_S // top_k], group, splits)
        result_RH = _computed(experts, compute, hidden_RH, local_R, size)
        back_SH: Tensor = _Exchange.apply(result_RH, group, splits[::-1])
        result_SH = torch.empty_like(back_SH).index_copy(0, order_S, back_SH)
        return (result_SH.view(tokens, top_k, -1) * top_k_weights[..., None]).sum(1).to(hidden_states.dtype)

    return forward


def _computed(experts: nn.Module, compute: Forward, hidden_RH: Tensor, local_R: Tensor, size: int) -> Tensor:
    """The results of this rank's experts, each token with one of them."""
    count = len(local_R)
    if count == 0:  # every rank needs a gradient, for FSDP's collectives
        hidden_RH, local_R = torch.cat([hidden_RH, hidden_RH.new_zeros(1, hidden_RH.shape[1])]), local_R.new_zeros(1)
    divided = dict(experts._parameters)
    try:
        for name, parameter in divided.items():
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            assert local is not None
            # The gradient is that of all ranks of the group. FSDP takes a mean over the others only.
            experts._parameters[name] = _Scaled.apply(local, 1 / size)
        result_RH = compute(hidden_RH, local_R[:, None], hidden_RH.new_ones(len(local_R), 1))
    finally:
        experts._parameters.update(divided)
    return result_RH[:count]


def _exchanged(values: Tensor, group: dist.ProcessGroup, splits: tuple[list[int], list[int]]) -> Tensor:
    sent, received = splits
    result = values.new_empty(sum(received), *values.shape[1:])
    dist.all_to_all_single(result, values.contiguous(), received, sent, group=group)
    return result


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup, splits: tuple[list[int], list[int]]) -> Tensor:
        ctx.group, ctx.splits = group, splits
        return _exchanged(values, group, splits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _exchanged(gradients[0], ctx.group, ctx.splits[::-1]), None, None


class _Scaled(torch.autograd.Function):
    """The same values, and a gradient that is scaled."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0] * ctx.factor, None
