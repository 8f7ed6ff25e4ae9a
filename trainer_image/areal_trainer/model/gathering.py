"""Whole tensors of sharded parameters, each on the one rank that needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard


def balanced(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """By name the rank that gets a tensor: the largest first, each to the rank that has the least until then.

    Every rank computes the same, in the same order. No rank gets more than the mean and one tensor.
    """
    loads = [0] * ranks
    owners: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += sizes[name]
    return owners


def gathered(tensor: Tensor, *, to: int, device: torch.device) -> Tensor | None:
    """The whole tensor on rank ``to``, None elsewhere. Collective.

    Only the ranks send that hold the parts nearest to ``to``: with several copies of the model those of one copy.
    """
    if not isinstance(tensor, DTensor):
        first = dist.get_rank() if dist.is_initialized() else 0
        return tensor if to == first else None
    mesh = tensor.device_mesh
    found, mine = (mesh.mesh == to).nonzero(), mesh.get_coordinate()
    assert mine is not None
    if not len(found):  # another mesh has the same tensor and that rank
        return None
    owner = found[0].tolist()
    part = tensor.to_local().to(device)  # offloaded ones as well: the groups are the device's
    for dimension, placement in enumerate(tensor.placements):
        if not isinstance(placement, Replicate):
            divided, group = _dimension(placement), mesh.get_group(dimension)
            part = _joined(part, divided, _rows(tensor, dimension), group=group, to=owner[dimension])
        if mine[dimension] != owner[dimension]:
            return None
    return part


def _rows(tensor: DTensor, dimension: int) -> int:
    """Size of what the ranks of a mesh's dimension divide, in the tensor's dimension that they divide."""
    placement = tensor.placements[dimension]
    divided = _dimension(placement)
    rows = int(tensor.shape[divided])
    for later in range(dimension + 1, tensor.device_mesh.ndim):
        other = tensor.placements[later]
        if not isinstance(other, Replicate) and _dimension(other) == divided:
            assert not isinstance(placement, Shard)  # but strided: FSDP divides the even parts of tensor parallelism
            rows //= tensor.device_mesh.size(later)
    return rows


def _dimension(placement: Any) -> int:
    return int(placement.dim)


def _joined(part: Tensor, dimension: int, rows: int, *, group: dist.ProcessGroup, to: int) -> Tensor:
    """On rank ``to`` of ``group`` the ranks' parts, divided like ``torch.chunk``; on the others anything.

    ``rows`` is the size of the whole in ``dimension``.
    """
    ranks = group.size()
    if ranks == 1:
        return part
    mine = part.movedim(dimension, 0).contiguous()
    each = -(-rows // ranks)
    if len(mine) < each:  # all parts of a gather have one size
        mine = torch.cat([mine, mine.new_zeros(each - len(mine), *mine.shape[1:])])
    sent = mine.flatten().view(torch.uint8)  # any type, with gloo as well
    if group.rank() != to:
        dist.gather(sent, group=group, group_dst=to)
        return part
    whole = mine.new_empty(each * ranks, *mine.shape[1:])
    dist.gather(sent, list(whole.flatten().view(torch.uint8).chunk(ranks)), group=group, group_dst=to)
    return whole[:rows].movedim(0, dimension)
