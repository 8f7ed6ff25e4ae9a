"""Token statistics that can be merged over microbatches and ranks."""

# K statistics, N tokens

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

Stats = dict[str, Tensor]
"""Name → float64 tensor of four: sum, count, minimum, maximum. Empty ones are 0, 0, +inf, −inf."""

Column = tuple[Tensor, Tensor | None]
"""Values of the N tokens, and a mask of those that count (None: all)."""


def summarize(columns: Mapping[str, Column]) -> Stats:
    """Statistics of several columns of equal length N in a few passes over one [K, N] tensor."""
    values_KN = torch.stack([values.detach().float() for values, _ in columns.values()])
    everything = torch.ones(values_KN.shape[1], dtype=torch.bool, device=values_KN.device)
    counted_KN = torch.stack([everything if counted is None else counted for _, counted in columns.values()])
    if values_KN.shape[1] == 0:
        low_K, high_K = values_KN.new_full((len(columns),), torch.inf), values_KN.new_full((len(columns),), -torch.inf)
    else:
        low_K = values_KN.masked_fill(~counted_KN, torch.inf).amin(1)
        high_K = values_KN.masked_fill(~counted_KN, -torch.inf).amax(1)
    sum_K = values_KN.masked_fill(~counted_KN, 0.0).sum(1, dtype=torch.float64)
    stats_K4 = torch.stack([sum_K, counted_KN.sum(1).double(), low_K.double(), high_K.double()], dim=1)
    return dict(zip(columns, stats_K4.unbind(0), strict=True))


def merge_stats(parts: Iterable[Stats]) -> Stats:
    """Merge the statistics of microbatches (or ranks); names may differ between the parts."""
    columns: dict[str, list[Tensor]] = {}
    for part in parts:
        for name, stat in part.items():
            columns.setdefault(name, []).append(stat)
    return {name: _merge(torch.stack(stats)) for name, stats in columns.items()}


def _merge(stats_P4: Tensor) -> Tensor:
    return torch.cat(
        [stats_P4[:, :2].sum(0), stats_P4[:, 2].amin(0, keepdim=True), stats_P4[:, 3].amax(0, keepdim=True)]
    )


def report(stats: Stats) -> dict[str, float]:
    """`name/avg`, `name/min` and `name/max` as numbers; statistics without values are omitted."""
    result: dict[str, float] = {}
    for name, stat in stats.items():
        total, count, low, high = stat.tolist()
        if count > 0:
            result |= {f"{name}/avg": total / count, f"{name}/min": low, f"{name}/max": high}
    return result
