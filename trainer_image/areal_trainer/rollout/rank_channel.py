"""Rollouts with several ranks: rank 0 generates for all, and each gets a share of about equal tokens.

Ranks that divide tokens or weights between them contribute and receive the same share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from areal_trainer.algo.packing import balance_by_tokens
from areal_trainer.ranks import Ranks
from areal_trainer.trajectory import Trajectory


class RankChannel:
    """Moves Python objects between rank 0 and the other ranks. Every method is collective."""

    def __init__(self) -> None:
        """Collective. Without torch.distributed, or with one rank, every method returns its argument."""
        ranks = Ranks.current()
        self.size, self.rank = ranks.world_size, ranks.rank
        self.shares = ranks.data_size
        self._sharing = ranks.sharing
        # A separate group: another thread may be running the policy's collectives.
        self._group = dist.new_group(backend="gloo") if self.size > 1 else None

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def to_first(self, value: Any) -> list[Any] | None:
        """On rank 0 the values of all shares, in their order; None elsewhere."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.rank == 0 else None
        sent = value if self.rank % self._sharing == 0 else None
        dist.gather_object(sent, values, dst=0, group=self._group)
        return None if values is None else values[:: self._sharing]

    def scatter(self, parts: list[Any] | None) -> Any:
        """This rank's part of rank 0's ``parts``, one for each share."""
        if self.size == 1:
            assert parts is not None
            return parts[0]
        box: list[Any] = [None]
        sent = None if parts is None else [parts[rank // self._sharing] for rank in range(self.size)]
        dist.scatter_object_list(box, sent, src=0, group=self._group)
        return box[0]

    def close(self) -> None:
        """Destroy the group."""
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None


def split_by_tokens(trajectories: Sequence[Trajectory], shares: int) -> list[list[Trajectory]]:
    """One part per share, of about equal tokens; each keeps the order of the batch."""
    parts = balance_by_tokens([len(trajectory) for trajectory in trajectories], shares)
    return [[trajectories[index] for index in part] for part in parts]
