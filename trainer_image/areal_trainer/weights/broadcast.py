"""The trainer's end of a collective weight update: a process group of rank 0 and every server rank.

The servers' end is SGLang's ``init_weights_update_group`` and ``update_weights_from_distributed``, which the engine
calls. Every method blocks: the engine runs them in a thread while its requests continue. ``abort`` cancels methods that
wait for servers.
"""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from areal_trainer.weights.finite import require_finite

T = TypeVar("T")
NCCL_FACTOR = 10
BUCKET_BYTES = 512 << 20  # bounds the memory of an update on trainer and servers
Tensors = Callable[[], Iterator[tuple[str, torch.Tensor]]]


@dataclass(frozen=True)
class Bucket:
    """Tensors that are sent in one broadcast, as one byte tensor."""

    names: list[str]
    dtypes: list[str]  # "float32", "bfloat16", …
    shapes: list[list[int]]
    payload: torch.Tensor  # uint8, the concatenated bytes of all tensors

    def request(self, group_name: str) -> dict[str, Any]:
        """Body of ``/update_weights_from_distributed``; the engine adds flush_cache and weight_version."""
        return {
            "names": self.names,
            "dtypes": self.dtypes,
            "shapes": self.shapes,
            "group_name": group_name,
            "load_format": "flattened_bucket",
        }


@dataclass(frozen=True)
class GroupPlan:
    """What a server needs to join a group."""

    name: str
    address: str  # of rank 0
    port: int


class Broadcast:
    """Rank 0's end of the group, for a whole run. Call ``connect`` again whenever the set of servers changes."""

    def __init__(self, tensors: Tensors, *, device: torch.device, dtype: torch.dtype, timeout_s: float) -> None:
        """``timeout_s``: limit for joining and for each broadcast."""
        self.backend = "nccl" if device.type == "cuda" else "gloo"
        self._tensors = tensors
        self._device = device
        self._dtype = dtype
        self._timeout = timedelta(seconds=timeout_s)
        # NCCL's own watchdog ends the process, so ours must come first.
        self._group_timeout = self._timeout * (NCCL_FACTOR if self.backend == "nccl" else 1)
        self._group: Any = None
        self._listener: dist.TCPStore | None = None  # rendezvous of all ranks
        self._plan: GroupPlan | None = None
        self._waiting: Future[Any] = Future()  # the last call that waits for servers
        self._trainer = uuid.uuid4().hex[:8]
        self._generation = 0

    @property
    def connected(self) -> bool:
        """Whether a group exists."""
        return self._group is not None

    @property
    def group_name(self) -> str:
        """Name of the current (or next) group. Servers refuse a name that was used before."""
        return f"areal-weights-{self._trainer}-{self._generation}"

    def plan_group(self, peers: Sequence[str]) -> GroupPlan:
        """Leave the old group and plan a new one with the servers at ``peers`` (host:port). Call before ``connect``.

        Addresses are resolved here, since those of pods change. Raises ``RuntimeError`` if no peer can be reached.
        """
        self.close()
        self._generation += 1
        address = own_address(peers)
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.bind((address, 0))
            self._plan = GroupPlan(self.group_name, address, int(probe.getsockname()[1]))
        return self._plan

    def connect(self, world_size: int) -> None:
        """Join the group of ``world_size`` as rank 0 and wait for every server; raises ``RuntimeError`` on timeout."""
        assert self._plan is not None
        address, port = self._plan.address, self._plan.port
        self._listener = dist.TCPStore(
            address, port, world_size, is_master=True, timeout=self._timeout, wait_for_workers=False
        )
        # A separate connection: closing the listener breaks it, which ends the wait for other ranks.
        store = dist.TCPStore(address, port, world_size, timeout=self._timeout, wait_for_workers=False)
        prefixed = dist.PrefixStore(self.group_name, store)
        name = self.group_name
        # torch offers no public way to join a group that is not a part of the default group, as every server is.
        self._group, _ = self._interruptible(
            lambda: distributed_c10d._new_process_group_helper(
                world_size, 0, [], dist.Backend(self.backend), prefixed, group_name=name, timeout=self._group_timeout
            )
        )
        distributed_c10d._world.pg_group_ranks[self._group] = {rank: rank for rank in range(world_size)}

    def buckets(self) -> Iterator[Bucket]:
        """Yield the policy's tensors in buckets of bounded size. Collective over the policy's ranks."""
        held: list[tuple[str, torch.Tensor]] = []
        size = 0
        for name, tensor in self._tensors():
            require_finite(name, tensor, self._dtype)
            sent = tensor.detach().to(self._device, self._dtype if tensor.is_floating_point() else tensor.dtype)
            if held and size + sent.nbytes > BUCKET_BYTES:
                yield _bucket(held)
                held, size = [], 0
            held.append((name, sent))
            size += sent.nbytes
        if held:
            yield _bucket(held)

    def send(self, bucket: Bucket) -> None:
        """Broadcast one bucket; raises ``RuntimeError`` if a server exited or on timeout."""
        group = self._group

        def sent() -> None:
            dist.broadcast(bucket.payload, src=0, group=group)
            if self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()

        self._interruptible(sent)

    def abort(self) -> None:
        """From another thread: make a running ``connect`` or ``send`` raise ``RuntimeError``, and leave the group."""
        with suppress(InvalidStateError):  # the call has just finished
            self._waiting.set_exception(RuntimeError("aborted"))
        self._listener = None  # releases servers that wait for others
        if self._group is not None:
            group, self._group = self._group, None
            distributed_c10d._abort_process_group(group)

    def close(self) -> None:
        """Leave the group. May block."""
        self._listener = None
        if self._group is not None:
            group, self._group = self._group, None
            dist.destroy_process_group(group)

    def _interruptible(self, call: Callable[[], T]) -> T:
        """Return the result of ``call``, unless ``abort`` or the deadline comes first.

        An aborted call of gloo, which cannot be interrupted, keeps its thread and its group until gloo's own timeout;
        NCCL's ends at once.
        """
        waiting: Future[T] = Future()

        def run() -> None:
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001  re-raised by the waiting thread
                with suppress(InvalidStateError):
                    waiting.set_exception(error)
            else:
                with suppress(InvalidStateError):
                    waiting.set_result(result)

        self._waiting = waiting
        threading.Thread(target=run, name="broadcast", daemon=True).start()
        try:
            return waiting.result(self._timeout.total_seconds())
        except TimeoutError:
            self.abort()
            seconds = self._timeout.total_seconds()
            raise RuntimeError(f"not done within {seconds:g} s (rollout.broadcast_timeout)") from None


def own_address(peers: Sequence[str]) -> str:
    """This host's address on the interface that routes to the first of ``peers`` (host:port) that can be resolved.

    Raises ``RuntimeError`` if there is none.
    """
    problems: list[str] = []
    for peer in peers:
        host, _, port = peer.rpartition(":")
        try:
            found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)
            for family, kind, protocol, _, address in found:
                with socket.socket(family, kind, protocol) as probe:
                    probe.connect(address)  # connecting a datagram socket sends nothing
                    return str(probe.getsockname()[0])
        except (OSError, ValueError) as error:
            problems.append(f"{peer}: {error}")
    raise RuntimeError(f"no server has an address that this host can reach: {'; '.join(problems) or 'no servers'}")


def _bucket(tensors: list[tuple[str, torch.Tensor]]) -> Bucket:
    return Bucket(
        names=[name for name, _ in tensors],
        dtypes=[str(tensor.dtype).removeprefix("torch.") for _, tensor in tensors],
        shapes=[list(tensor.shape) for _, tensor in tensors],
        payload=torch.cat([tensor.contiguous().flatten().view(torch.uint8) for _, tensor in tensors]),
    )
