"""``publishing_memory.py MODE OUT`` publishes a large model and prints the peak growth of the process in bytes.

Tensors are created while they are gathered, like shards, so that the model is not in memory beforehand.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from areal_trainer.ranks import Ranks
from areal_trainer.servers import broadcast_update
from areal_trainer.servers.fleet import Target
from areal_trainer.weights import broadcast
from areal_trainer.weights import disk as weights

TENSORS = 40
TENSOR_BYTES = 8 << 20
MODEL_BYTES = TENSORS * TENSOR_BYTES
BUCKET_BYTES = 4 * TENSOR_BYTES


class LargeModel:
    """A policy with large tensors."""

    def named_full_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for number in range(TENSORS):
            yield f"layers.{number}.weight", torch.full((TENSOR_BYTES // 4,), float(number))

    def named_own_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self.named_full_tensors()

    def buffers(self) -> dict[str, torch.Tensor]:
        return {}

    def save_model_config(self, directory: Path) -> None:
        (directory / "config.json").write_text("{}")


class DiscardingBroadcast(broadcast.Broadcast):
    """Discards everything."""

    def send(self, bucket: broadcast.Bucket) -> None:
        pass


def publish(mode: str, out: Path) -> None:
    model = LargeModel()
    if mode == "disk":
        weights.publish_to_disk(model, run=out, version=1, dtype=torch.float32, ranks=Ranks.current())
        return
    sender = DiscardingBroadcast(
        model.named_full_tensors, device=torch.device("cpu"), dtype=torch.float32, timeout_s=9.0
    )
    nobody: Any = None
    asyncio.run(broadcast_update.BroadcastUpdater(nobody).send([], Target(1), sender))


def peak() -> int:
    """Peak resident size since the last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    weights.SHARD_BYTES = broadcast.BUCKET_BYTES = BUCKET_BYTES
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak resident size
    before = peak()
    publish(sys.argv[1], Path(sys.argv[2]))
    print(peak() - before)
