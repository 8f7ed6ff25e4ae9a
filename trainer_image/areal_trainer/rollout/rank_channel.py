"""Rollouts with several ranks: rank 0 generates for all, and each rank gets a share of about equal tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from areal_trainer.algo.packing import balance_by_tokens
from areal_trainer.trajectory import Trajectory


class RankChannel:
    """Moves Python objects between rank 0 and the other ranks. Every method is collective."""

    def __init__(self) -> None:
        """Collective. Without torch.distributed, or with one rank, every method returns its argument."""
        distributed = dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size() if distributed else 1
        self.rank = dist.get_rank() if distributed else 0
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
        """On rank 0 the values of all ranks, in rank order; None elsewhere."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, values, dst=0, group=self._group)
        return values

    def scatter(self, parts: list[Any] | None) -> Any:
        """This rank's part of rank 0's ``parts``."""
        if self.size == 1:
            assert parts is not None
            return parts[0]
        box: list[Any] = [None]
        dist.scatter_object_list(box, parts, src=0, group=self._group)
        return box[0]

    def close(self) -> None:
        """Destroy the group."""
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None


def split_by_tokens(trajectories: Sequence[Trajectory], ranks: int) -> list[list[Trajectory]]:
    """One part per rank, of about equal tokens; each keeps the order of the batch."""
    parts = balance_by_tokens([len(trajectory) for trajectory in trajectories], ranks)
    return [[trajectories[index] for index in part] for part in parts]
