"""One rank of the check of collectives: ``torchrun -m hack.gpu_smoke.ranks``, on AREAL_DEVICE."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from areal_api import names
from areal_trainer.ranks import joined

SIZE = 1 << 20


def main() -> None:
    """Sum the ranks' numbers, broadcast rank 0's, and compare with what they must be."""
    with joined(os.environ[names.DEVICE]) as ranks:
        total = torch.full((SIZE,), float(ranks.rank + 1), device=ranks.device)
        dist.all_reduce(total)
        expected = ranks.world_size * (ranks.world_size + 1) / 2
        sent = torch.full((SIZE,), float(ranks.rank + 7), device=ranks.device)
        dist.broadcast(sent, src=0)
        if not (bool((total == expected).all()) and bool((sent == 7).all())):
            raise SystemExit(f"rank {ranks.rank}: wrong results, sum {total[0]}, broadcast {sent[0]}")
        if ranks.is_first:
            print(f"ranks: {ranks.world_size} on {ranks.device.type}, sum and broadcast are right")


if __name__ == "__main__":
    main()
