"""The trainer's processes: this process's rank and device, and the collectives that the training loop needs.

Everything that depends on the process group asks a ``Ranks``; only ``weights.broadcast``, which has a group with the
servers, and PyTorch's own sharding use ``torch.distributed`` directly.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from areal_trainer import fabric

logger = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT = timedelta(hours=2)  # longer than any healthy wait of rank 0 for rollouts


@dataclass(frozen=True)
class Ranks:
    """This process among the ``world_size`` processes of torchrun."""

    rank: int
    world_size: int
    device: torch.device

    @classmethod
    def current(cls) -> Ranks:
        """The initialised process group; a single rank where there is none."""
        if not dist.is_initialized():
            return cls(0, 1, torch.device("cpu"))
        on_gpu = "nccl" in dist.get_backend_config()
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        return cls(dist.get_rank(), dist.get_world_size(), device)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which runs the rollouts and writes all files."""
        return self.rank == 0

    def reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a float64 host tensor over all ranks, in place. Collective."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """The host tensors of all ranks, stacked. Collective; every rank passes the same shape."""
        if self.world_size == 1:
            return values.unsqueeze(0)
        parts = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(parts, values)
        return torch.stack(parts)

    def gather_objects(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank. Collective."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def objects_to_first(self, value: Any) -> list[Any]:
        """On rank 0 the values of all ranks, by rank; empty elsewhere. Collective."""
        if self.world_size == 1:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.is_first else None
        dist.gather_object(value, values, dst=0)
        return values or []

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. Collective."""
        return bool(self.reduce_sum(torch.tensor([float(flag)], dtype=torch.float64)).item())

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on every rank. Collective."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Wait for all ranks. Collective."""
        if self.world_size > 1:
            dist.barrier()


def lost_another(error: BaseException) -> bool:
    """Whether a collective failed because another rank exited or is unreachable."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    return isinstance(error, RuntimeError) and "gloo/transport" in str(error)  # gloo defines no exception type


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join torchrun's process group: gloo for host tensors, nccl for GPU tensors. ``device`` is cuda or cpu."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("spec.trainer.device is cuda but torch sees no GPU here; set spec.trainer.device=cpu")
        torch.cuda.set_device(local_rank)
        if local_rank == 0:
            found = fabric.detect(fabric.Host.current(), os.environ)
            logger.log(logging.WARNING if found.warnings else logging.INFO, "%s", found)
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
        dist.barrier()  # the rank that hosts the store must not leave before the others
    finally:
        dist.destroy_process_group()
