"""Which sequences go through the model together: minibatches, and the microbatches they are cut into.

Every rank makes the same number of passes, so that the collectives inside the model meet.
"""

# K statistics of four numbers

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from areal_api.actor import MicroBatchSpec
from areal_trainer.algo.packing import equalize_microbatches, pack_microbatches, split_minibatches
from areal_trainer.algo.token_stats import Stats, merge_stats
from areal_trainer.batch import PackedBatch
from areal_trainer.model.layout import Cost, Family, Layout, families, halved, lay_out


def minibatches(batch: PackedBatch, count: int, *, cost: Cost | None) -> list[list[Family]]:
    """``count`` parts of about equal tokens. Samples of a prompt stay together unless that leaves a part empty."""
    units = families(batch, cost=cost)
    while len(units) < count and any(len(unit.members) > 1 for unit in units):
        largest = max(units, key=lambda unit: len(unit.members))
        units.remove(largest)
        units += halved(largest, batch)
    return [[units[index] for index in part] for part in split_minibatches([unit.tokens for unit in units], count)]


def microbatches(batch: PackedBatch, units: list[Family], spec: MicroBatchSpec, *, field: str) -> list[Layout]:
    """The passes of a minibatch, as many on every rank. Collective.

    Raises ``ValueError``, naming ``field``, where a sequence alone is longer than the most tokens of a microbatch.
    """
    limit = spec.max_tokens_per_mb or max(1, sum(unit.tokens for unit in units))
    fitting: list[Family] = []
    waiting = list(units)
    while waiting:
        unit = waiting.pop()
        if unit.tokens > limit and len(unit.members) > 1:
            waiting += halved(unit, batch)
        else:
            fitting.append(unit)
    lengths = [unit.tokens for unit in fitting]
    bins = pack_microbatches(lengths, limit, field=f"{field}.max_tokens_per_mb")
    count = int(over_ranks(torch.tensor([max(len(bins), spec.n_mbs)], dtype=torch.float64)).max())
    return [lay_out(batch, [fitting[i] for i in part]) for part in equalize_microbatches(bins, lengths, count)]


def over_ranks(values: Tensor) -> Tensor:
    """The host tensor of every rank, stacked. Collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values.unsqueeze(0)
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values)
    return torch.stack(parts)


def merged_over_ranks(stats: Stats) -> Stats:
    """Statistics of all ranks together; every rank has the same names. Collective."""
    names = sorted(stats)
    gathered = over_ranks(torch.stack([stats[name].cpu() for name in names]))
    return merge_stats(dict(zip(names, rank_K4, strict=True)) for rank_K4 in gathered)
