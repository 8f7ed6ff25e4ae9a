"""The trainer's processes: this process's rank and device, their mesh, and the collectives of the training loop.

The ranks form one ``DeviceMesh`` of three dimensions. Ranks that differ only in ``data`` train on different sequences.
The ``context`` × ``tensor`` ranks in between share their sequences and divide tokens and weights; to everything that
handles sequences and statistics they count as one.

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
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from areal_api.actor import ParallelConfig
from areal_trainer import fabric

logger = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT = timedelta(hours=2)  # longer than any healthy wait of rank 0 for rollouts


DATA, CONTEXT, TENSOR = "data", "context", "tensor"
_mesh: DeviceMesh | None = None  # of the process group, as ``joined`` laid it out; without one all ranks are data ranks


@dataclass(frozen=True)
class Ranks:
    """This process among the ``world_size`` processes of torchrun."""

    rank: int
    world_size: int
    device: torch.device
    mesh: DeviceMesh | None = None
    """Dimensions data, context and tensor; None if each rank has its own sequences."""

    @classmethod
    def current(cls) -> Ranks:
        """The initialised process group; a single rank where there is none."""
        if not dist.is_initialized():
            return cls(0, 1, torch.device("cpu"))
        on_gpu = "nccl" in dist.get_backend_config()
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        return cls(dist.get_rank(), dist.get_world_size(), device, _mesh)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which runs the rollouts and names what the ranks have written."""
        return self.rank == 0

    @property
    def local_size(self) -> int:
        """Ranks on this node."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))

    @property
    def data_rank(self) -> int:
        """Number of this rank's share of the sequences."""
        return self.rank // self.sharing

    @property
    def data_size(self) -> int:
        """Number of shares of the sequences."""
        return self.world_size // self.sharing

    @property
    def sharing(self) -> int:
        """Ranks that share their sequences; they are numbered consecutively."""
        return self.size_of(CONTEXT) * self.size_of(TENSOR)

    def size_of(self, dimension: str) -> int:
        """Size of a dimension of the mesh."""
        if self.mesh is None:
            return self.world_size if dimension == DATA else 1
        return self.mesh[dimension].size()

    def reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a float64 host tensor over the shares of the sequences, in place. Collective."""
        if self.data_size > 1:
            dist.all_reduce(values, group=self._data_group())
        return values

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """The host tensors of all shares of the sequences, stacked. Collective; every rank passes the same shape."""
        if self.data_size == 1:
            return values.unsqueeze(0)
        parts = [torch.empty_like(values) for _ in range(self.data_size)]
        dist.all_gather(parts, values, group=self._data_group())
        return torch.stack(parts)

    def gather_objects(self, value: Any) -> list[Any]:
        """The values of all shares of the sequences, in their order. Collective."""
        if self.data_size == 1:
            return [value]
        values: list[Any] = [None] * self.data_size
        dist.all_gather_object(values, value, group=self._data_group())
        return values

    def objects_to_first(self, value: Any) -> list[Any]:
        """On rank 0 the values of all shares of the sequences, in their order; empty elsewhere. Collective."""
        return self.gather_from_all(value if self.rank % self.sharing == 0 else None)[:: self.sharing]

    def gather_from_all(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank; empty except on rank 0. Collective."""
        if self.world_size == 1:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.is_first else None
        dist.gather_object(value, values, dst=0)
        return values or []

    def sum_over_all(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a host tensor over all ranks, in place. Collective."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. Collective."""
        return bool(self.sum_over_all(torch.tensor([float(flag)], dtype=torch.float64)).item())

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

    def _data_group(self) -> dist.ProcessGroup | None:
        return None if self.mesh is None else self.mesh.get_group(DATA)


def lost_another(error: BaseException) -> bool:
    """Whether a collective failed because another rank exited or is unreachable."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    return isinstance(error, RuntimeError) and "gloo/transport" in str(error)  # gloo defines no exception type


@contextmanager
def joined(device: str, parallel: ParallelConfig | None = None) -> Iterator[Ranks]:
    """Join torchrun's process group: gloo for host tensors, nccl for GPU tensors. ``device`` is cuda or cpu.

    ``parallel`` lays the ranks out; by default each has its own sequences. Raises ``ValueError`` if it does not divide
    the ranks.
    """
    global _mesh  # like torch's process group, there is one in a process
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    parallel = parallel or ParallelConfig()
    problem = parallel.problem(world_size)
    if problem is not None:
        raise ValueError(problem)
    place = _place(device)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    if "MASTER_ADDR" not in os.environ:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=COLLECTIVE_TIMEOUT)
    else:
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    try:
        if parallel.ranks > 1:
            shape = (world_size // parallel.ranks, parallel.context, parallel.tensor)
            _mesh = init_device_mesh(device, shape, mesh_dim_names=(DATA, CONTEXT, TENSOR))
        yield Ranks(rank, world_size, place, _mesh)
        dist.barrier()  # the rank that hosts the store must not leave before the others
    finally:
        _mesh = None
        dist.destroy_process_group()


def _place(device: str) -> torch.device:
    """The device of this process. Raises ``ValueError`` for one that does not exist here."""
    if device == "cpu":
        return torch.device("cpu")
    if device != "cuda":
        raise ValueError(f"spec.trainer.device is {device!r}; set cuda or cpu")
    if not torch.cuda.is_available():
        raise ValueError("spec.trainer.device is cuda but torch sees no GPU here; set spec.trainer.device=cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(local_rank)
    if local_rank == 0:
        found = fabric.detect(fabric.Host.current(), os.environ)
        logger.log(logging.WARNING if found.warnings else logging.INFO, "%s", found)
    return torch.device("cuda", local_rank)
