"""Layout of the sequences of a microbatch for one forward pass.

Tokens are packed without padding, so every matrix multiplication processes each token once. Sequences with the same
prompt (the samples of a group) share one copy of it if that costs less; log-probs and gradients are the same sums.
Attention works on *segments*: a token attends to the earlier tokens of its segment and to the segment's whole prefix,
which is the shared prompt or empty. ``attention.py`` computes it.
"""

# B sequences of the batch, T its tokens, P tokens of the pass, N trained tokens of the pass,
# L layers with experts, K experts of a token

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from areal_trainer.batch import PackedBatch
from areal_trainer.trajectory import Trajectory

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Cost:
    """Cost of a forward pass in floating-point operations."""

    token: float  # per token, without attention
    pair: float  # attention, per pair of query and key


@dataclass(frozen=True)
class Segment:
    """Tokens ``start … start + length`` of a pass, preceded by its tokens ``prefix_start … + prefix_length``."""

    start: int
    length: int
    prefix_start: int = 0
    prefix_length: int = 0


@dataclass(frozen=True, eq=False)
class Layout:
    """One forward pass."""

    input_ids_P: Tensor
    position_ids_P: Tensor
    segments: list[Segment]  # a partition of the P tokens, in order
    token_N: Tensor  # position of each trained token in the batch
    source_N: Tensor  # position in the pass of the preceding token, whose hidden state predicts it
    target_N: Tensor  # token id
    experts_PLK: Tensor | None = None  # int32, that servers chose; −1 where none are known
    padding: int = 0  # tokens at the end that belong to no sequence

    @property
    def is_real_P(self) -> Tensor:
        """Which tokens are not padding, bool [P]."""
        return torch.arange(len(self.input_ids_P)) < len(self.input_ids_P) - self.padding


@dataclass(frozen=True)
class PrefixGroup:
    """Sequences of a batch that are kept together; their first ``shared`` tokens are stored once."""

    members: tuple[int, ...]
    shared: int
    tokens: int  # that the group adds to a pass


def group_by_prompt(batch: PackedBatch, *, cost: Cost | None) -> list[PrefixGroup]:
    """Group sequences by prompt if sharing it costs less; the others form groups of one.

    With ``cost`` None nothing is shared.
    """
    if cost is None:
        return [_alone(batch, index) for index in range(len(batch))]
    by_prompt: dict[bytes, list[int]] = {}
    for index, trajectory in enumerate(batch.trajectories):
        # Trained tokens in a shared prompt would count once instead of once per sample.
        trained = trajectory.loss_mask[: trajectory.prompt_len].any()
        key = b"%d" % index if trained else trajectory.input_ids[: trajectory.prompt_len].tobytes()
        by_prompt.setdefault(key, []).append(index)
    result: list[PrefixGroup] = []
    for members in by_prompt.values():
        if _sharing_pays(batch, members, cost):
            result.append(_together(batch, members))
        else:
            result += [_alone(batch, index) for index in members]
    return result


def split_group(group: PrefixGroup, batch: PackedBatch) -> list[PrefixGroup]:
    """Split a group into two."""
    middle = len(group.members) // 2
    parts = [list(group.members[:middle]), list(group.members[middle:])]
    return [_together(batch, part) if len(part) > 1 else _alone(batch, part[0]) for part in parts]


def lay_out(batch: PackedBatch, chosen: Sequence[PrefixGroup]) -> Layout:
    """The forward pass over these groups.

    Without groups it is a single untrained token, so that an idle rank takes part in the collectives.
    """
    if not chosen:
        empty = torch.empty(0, dtype=torch.int64)
        one = torch.zeros(1, dtype=torch.int64)
        return Layout(one, one, [Segment(0, 1)], token_N=empty, source_N=empty, target_N=empty)
    starts = batch.cu_seqlens.tolist()
    at_T = np.full(starts[-1], -1, dtype=np.int64)  # position in the pass of each token of the batch
    ids: list[Indices] = []
    positions: list[Indices] = []
    segments: list[Segment] = []
    parts: list[tuple[Trajectory, int, int]] = []  # with its tokens begin … end − 1
    size = 0

    def add(sequence: int, begin: int, end: int, prefix_start: int = 0) -> int:
        nonlocal size
        ids.append(batch.trajectories[sequence].input_ids[begin:end])
        positions.append(np.arange(begin, end))
        segments.append(Segment(size, end - begin, prefix_start, begin))
        parts.append((batch.trajectories[sequence], begin, end))
        at_T[starts[sequence] + begin : starts[sequence] + end] = np.arange(size, size + end - begin)
        size += end - begin
        return segments[-1].start

    for group in chosen:
        shared = group.shared
        shared_at = add(group.members[0], 0, shared) if shared else 0
        for sequence in group.members:
            begin, end = starts[sequence], starts[sequence + 1]
            at_T[begin : begin + shared] = np.arange(shared_at, shared_at + shared)
            if end - begin > shared:
                add(sequence, shared, end - begin, shared_at)
    token_N = np.flatnonzero((at_T >= 0) & batch.loss_mask_T.numpy())
    all_ids, all_positions = torch.from_numpy(np.concatenate(ids)), torch.from_numpy(np.concatenate(positions))
    source_N, target_N = torch.from_numpy(at_T[token_N - 1]), batch.input_ids_T[torch.from_numpy(token_N)]
    return Layout(all_ids, all_positions, segments, torch.from_numpy(token_N), source_N, target_N, _experts(parts))


def _alone(batch: PackedBatch, index: int) -> PrefixGroup:
    return PrefixGroup((index,), shared=0, tokens=len(batch.trajectories[index]))


def _together(batch: PackedBatch, members: list[int]) -> PrefixGroup:
    shared = _shared(batch, members)
    rest = sum(len(batch.trajectories[index]) - shared for index in members)
    return PrefixGroup(tuple(members), shared=shared, tokens=shared + rest)


def _shared(batch: PackedBatch, members: Sequence[int]) -> int:
    """Tokens of their prompt that sequences can share: those for which servers chose the same experts."""
    first, *others = (batch.trajectories[index] for index in members)
    shared = first.prompt_len
    if first.experts is None:
        return shared
    for other in others:
        if other.experts is None:
            return 0
        shared = min(shared, len(first.experts), len(other.experts))
        differs = (first.experts[:shared] != other.experts[:shared]).any((1, 2))
        shared = int(differs.argmax()) if differs.any() else shared
    return shared


def _experts(parts: Sequence[tuple[Trajectory, int, int]]) -> Tensor | None:
    found = [trajectory.experts for trajectory, _, _ in parts if trajectory.experts is not None]
    if not found:
        return None
    size = sum(end - begin for _, begin, end in parts)
    experts_PLK = np.full((size, *found[0].shape[1:]), -1, dtype=np.int32)
    at = 0
    for trajectory, begin, end in parts:
        if trajectory.experts is not None:
            known = trajectory.experts[begin:end]
            experts_PLK[at : at + len(known)] = known
        at += end - begin
    return torch.from_numpy(experts_PLK)


def _sharing_pays(batch: PackedBatch, members: list[int], cost: Cost) -> bool:
    # Causal attention of a single sequence skips the masked half; after a shared prompt it needs an explicit mask and
    # computes all pairs.
    if len(members) < 2:
        return False
    shared = _shared(batch, members)
    lengths = [len(batch.trajectories[index]) for index in members]
    saved_tokens = shared * (len(members) - 1)
    pairs_alone = sum(length * length for length in lengths) / 2
    pairs_shared = shared * shared / 2 + sum((length - shared) * length for length in lengths)
    return cost.token * saved_tokens > cost.pair * (pairs_shared - pairs_alone)
