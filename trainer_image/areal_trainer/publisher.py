"""The loop's side of publishing: which way the weights go, and whether training goes on meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Literal, Protocol

import torch

from areal_trainer.ranks import Ranks
from areal_trainer.servers.weight_update import BroadcastError
from areal_trainer.weights.broadcast import Broadcast
from areal_trainer.weights.disk import Publishable, WeightUpdate, publish_to_disk

logger = logging.getLogger(__name__)


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
        self._tensors: Iterator[tuple[str, torch.Tensor]] = iter(())  # that this broadcast has not gathered yet
        self._broadcast = Broadcast(
            lambda: self._tensors, device=ranks.device, dtype=dtype, address=address, timeout_s=timeout_s
        )

    def publish(self, version: int, *, wait: bool) -> None:
        """Bring the servers to the policy's weights as ``version``. Collective.

        Without ``wait`` the servers load files while the trainer goes on; a broadcast always waits, since it sends the
        very tensors that the next step changes. Where it fails, the weights go to the servers through files.
        """
        self.wait()
        if self._mode == "distributed" and self._has_broadcast(version):
            return
        update = self.write(version)
        if self._engine is None:
            return
        if wait or self._mode == "distributed":
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

    def _has_broadcast(self, version: int) -> bool:
        """Whether the servers hold ``version`` now: by broadcast, or from files written for those that were behind."""
        behind = self._ranks.from_first(self._engine is not None and self._engine.servers_behind())
        path = self.write(version).path if behind else None
        self._tensors = self._policy.named_full_tensors()
        held = True
        try:
            if self._engine is not None:
                self._engine.update_weights(WeightUpdate(version, path=path, broadcast=self._broadcast))
        except BroadcastError as error:
            logger.warning("v%d is published through files: %s", version, error)
            held = False
        finally:
            for _ in self._tensors:  # every rank gathers every tensor, also where a broadcast broke off
                pass
        return self._ranks.from_first(held)
