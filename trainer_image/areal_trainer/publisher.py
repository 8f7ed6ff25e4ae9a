"""Publishes the policy's weights to the servers: through files or by broadcast, in the background or blocking."""

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
    """The part of the engine that publishing uses."""

    def update_weights(self, update: WeightUpdate) -> None:
        """Bring the servers to the update; returns when the current ones hold it."""
        ...

    def update_weights_async(self, update: WeightUpdate) -> Future[None]:
        """The same in the background."""
        ...

    def servers_behind(self) -> bool:
        """Whether a server missed a broadcast and needs weights on disk."""
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
        deltas: bool = False,
        timeout_s: float = 120.0,
    ) -> None:
        """``deltas``: also write what changed since the version before. ``timeout_s``: of each broadcast."""
        self._policy = policy
        self._engine = engine
        self._mode = mode
        self._run = run
        self._dtype = dtype
        self._ranks = ranks
        self._deltas = deltas
        self._pending: Future[None] | None = None
        self._tensors: Iterator[tuple[str, torch.Tensor]] = iter(())  # not yet gathered by the current broadcast
        self._broadcast = Broadcast(lambda: self._tensors, device=ranks.device, dtype=dtype, timeout_s=timeout_s)

    def publish(self, version: int, *, wait: bool) -> None:
        """Bring the servers to the policy's weights as ``version``. Collective.

        Without ``wait``, the servers load files while training continues. A broadcast always blocks, because the next
        step changes the tensors that it sends. If a broadcast fails, the weights are published through files.
        """
        self.wait()
        if self._mode == "distributed" and self._publish_by_broadcast(version):
            return
        update = self.write(version)
        if self._engine is None:
            return
        if wait or self._mode == "distributed":
            self._engine.update_weights(update)
        else:
            self._pending = self._engine.update_weights_async(update)

    def wait(self) -> None:
        """Wait until the servers hold the last published version; raises the error of a failed update."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Leave the broadcast group."""
        self._broadcast.close()

    def write(self, version: int) -> WeightUpdate:
        """Write the policy's weights as ``version`` without notifying the servers. Collective."""
        path = publish_to_disk(
            self._policy, run=self._run, version=version, dtype=self._dtype, ranks=self._ranks, deltas=self._deltas
        )
        return WeightUpdate(version, path=path)

    def _publish_by_broadcast(self, version: int) -> bool:
        """Whether the servers now hold ``version``. Also writes it to disk if a server missed the last broadcast."""
        behind = self._ranks.from_first(self._engine is not None and self._engine.servers_behind())
        path = self.write(version).path if behind else None
        self._tensors = self._policy.named_full_tensors()
        published = True
        try:
            if self._engine is not None:
                self._engine.update_weights(WeightUpdate(version, path=path, broadcast=self._broadcast))
        except BroadcastError as error:
            logger.warning("v%d is published through files: %s", version, error)
            published = False
        finally:
            for _ in self._tensors:  # every rank must send its part of every tensor, even after an aborted broadcast
                pass
        return self._ranks.from_first(published)
