"""The trainer's processes: which rank this is, on what device, and the collectives that the loop itself needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

COLLECTIVE_TIMEOUT = timedelta(hours=2)  # longer than any wait of rank 0 for rollouts that is not a fault by itself


@dataclass(frozen=True)
class Ranks:
    """This process among the ``world_size`` processes of torchrun."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Rank 0 runs the rollouts, writes files and talks to people."""
        return self.rank == 0

    def reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of a float64 host tensor over all ranks, given to each."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return bool(self.reduce_sum(torch.tensor([float(flag)], dtype=torch.float64)).item())

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def lost_another(error: BaseException) -> bool:
    """Whether a collective failed because another rank is gone, or cannot be reached."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    return isinstance(error, RuntimeError) and "gloo/transport" in str(error)  # gloo has no exception of its own


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join torchrun's process group; host tensors go over gloo, GPU tensors over nccl. ``device``: cuda or cpu."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("spec.trainer.device is cuda but torch sees no GPU here; set spec.trainer.device=cpu")
        torch.cuda.set_device(local_rank)
        place, backend = torch.device("cuda", local_rank), "cpu:gloo,cuda:nccl"
    elif device == "cpu":
        place, backend = torch.device("cpu"), "gloo"
    else:
        raise ValueError(f"spec.trainer.device is {device!r}; set cuda or cpu")
    if "MASTER_ADDR" not in os.environ:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=COLLECTIVE_TIMEOUT)
    else:
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    try:
        yield Ranks(rank, world_size, place)
        dist.barrier()  # a rank that leaves early takes the store of the others with it
    finally:
        dist.destroy_process_group()
