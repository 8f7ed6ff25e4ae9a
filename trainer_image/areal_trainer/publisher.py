"""The loop's side of publishing: which way the weights go, and whether training goes on meanwhile."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Literal, Protocol

import torch

from areal_trainer.broadcast import Broadcast
from areal_trainer.ranks import Ranks
from areal_trainer.weights import Publishable, WeightUpdate, publish_to_disk


class Updatable(Protocol):
    """What publishing needs of the engine."""

    def update_weights(self, update: WeightUpdate) -> None:
        """Bring the servers to the update; returns when those that serve hold it."""
        ...

    def update_weights_async(self, update: WeightUpdate) -> Future[None]:
        """The same, under way."""
        ...

    def servers_behind(self) -> bool:
        """Whether a server waits for weights that are not on disk."""
        ...


class Publisher:
    """Publishes the policy. ``engine`` is None on every rank but the first."""

    def __init__(
        self,
        policy: Publishable,
        engine: Updatable | None,
        *,
        mode: Literal["disk", "distributed"],
        run: Path,
        dtype: torch.dtype,
        ranks: Ranks,
        address: str = "127.0.0.1",
        timeout_s: float = 120.0,
    ) -> None:
        """``address``: where the servers reach rank 0. ``timeout_s``: of each broadcast."""
        self._policy = policy
        self._engine = engine
        self._mode = mode
        self._run = run
        self._dtype = dtype
        self._ranks = ranks
        self._under_way: Future[None] | None = None
        self._broadcast = Broadcast(
            policy.named_full_tensors, device=ranks.device, dtype=dtype, address=address, timeout_s=timeout_s
        )

    def publish(self, version: int, *, wait: bool) -> None:
        """Bring the servers to the policy's weights as ``version``. Collective.

        Without ``wait`` the servers load files while the trainer goes on; a broadcast always waits, since it sends the
        very tensors that the next step changes.
        """
        self.wait()
        update = self.write(version) if self._mode == "disk" else self._by_broadcast(version)
        if self._engine is None:
            return
        if wait or update.broadcast is not None:
            self._engine.update_weights(update)
        else:
            self._under_way = self._engine.update_weights_async(update)

    def wait(self) -> None:
        """Until the servers hold what was published last; raises what went wrong."""
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            under_way.result()

    def close(self) -> None:
        """Leave the servers' group."""
        self._broadcast.close()

    def write(self, version: int) -> WeightUpdate:
        """Write the policy's weights as ``version`` without telling the servers. Collective."""
        path = publish_to_disk(
            self._policy, run=self._run, version=version, dtype=self._dtype, writes=self._ranks.is_first
        )
        return WeightUpdate(version, path=path)

    def _by_broadcast(self, version: int) -> WeightUpdate:
        behind = self._ranks.from_first(self._engine is not None and self._engine.servers_behind())
        path = self.write(version).path if behind else None
        if not self._ranks.is_first:
            for _ in self._policy.named_full_tensors():
                pass
        return WeightUpdate(version, path=path, broadcast=self._broadcast)
