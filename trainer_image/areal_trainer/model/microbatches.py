"""Splitting a batch into minibatches and microbatches.

Every rank makes the same number of forward passes, so that the collectives inside the model match.
"""

# K statistics of four numbers

from __future__ import annotations

import torch

from areal_api.actor import MicroBatchSpec
from areal_trainer.algo.packing import equalize_microbatches, pack_microbatches, split_minibatches
from areal_trainer.algo.token_stats import Stats, merge_stats
from areal_trainer.batch import PackedBatch
from areal_trainer.model.layout import Cost, Layout, PrefixGroup, group_by_prompt, lay_out, split_group
from areal_trainer.ranks import Ranks


def minibatches(batch: PackedBatch, count: int, *, cost: Cost | None) -> list[list[PrefixGroup]]:
    """Split into ``count`` parts of similar token counts.

    Samples of a prompt stay together unless a part would be empty.
    """
    units = group_by_prompt(batch, cost=cost)
    while len(units) < count and any(len(unit.members) > 1 for unit in units):
        largest = max(units, key=lambda unit: len(unit.members))
        units.remove(largest)
        units += split_group(largest, batch)
    return [[units[index] for index in part] for part in split_minibatches([unit.tokens for unit in units], count)]


def microbatches(batch: PackedBatch, units: list[PrefixGroup], spec: MicroBatchSpec, *, field: str) -> list[Layout]:
    """The forward passes of a minibatch, equally many on every rank. Collective.

    Raises ``ValueError``, naming ``field``, for a sequence longer than the limit of a microbatch.
    """
    limit = spec.max_tokens_per_mb or max(1, sum(unit.tokens for unit in units))
    fitting: list[PrefixGroup] = []
    pending = list(units)
    while pending:
        unit = pending.pop()
        if unit.tokens > limit and len(unit.members) > 1:
            pending += split_group(unit, batch)
        else:
            fitting.append(unit)
    lengths = [unit.tokens for unit in fitting]
    bins = pack_microbatches(lengths, limit, field=f"{field}.max_tokens_per_mb")
    count = int(Ranks.current().gather(torch.tensor([max(len(bins), spec.n_mbs)], dtype=torch.float64)).max())
    return [lay_out(batch, [fitting[i] for i in part]) for part in equalize_microbatches(bins, lengths, count)]


def merged_over_ranks(stats: Stats) -> Stats:
    """Merge the statistics of all ranks, which have the same names. Collective."""
    names = sorted(stats)
    gathered = Ranks.current().gather(torch.stack([stats[name].cpu() for name in names]))
    return merge_stats(dict(zip(names, rank_K4, strict=True)) for rank_K4 in gathered)
