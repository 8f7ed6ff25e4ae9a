"""Layout of ranks, and detection of lost ones."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from areal_api.actor import ParallelConfig
from areal_trainer.ranks import CONTEXT, TENSOR, Ranks, joined, lost_another
from areal_trainer.rollout.rank_channel import RankChannel
from support.parallel_ranks import fork_ranks


def _rank(number: int, store: str, results: Connection) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    dist.all_reduce(torch.zeros(1))
    if number == 1:
        os._exit(9)
    try:
        while True:
            dist.all_reduce(torch.zeros(1))
    except RuntimeError as error:
        results.send((lost_another(error), str(error)))


def test_a_lost_rank_is_detected(tmp_path: Path) -> None:
    receiver, sender = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(number, str(tmp_path / "store"), sender)) for number in range(2)]
    for rank in ranks:
        rank.start()
    assert receiver.poll(60.0), "the remaining rank still waits"
    assert receiver.recv()[0] is True
    for rank in ranks:
        rank.join()


def _share() -> None:
    """Two shares of two tensor-parallel ranks."""
    with joined("cpu", ParallelConfig(tensor=2)) as ranks:
        assert ranks == Ranks.current()
        assert (ranks.size_of(TENSOR), ranks.size_of(CONTEXT), ranks.sharing) == (2, 1, 2)
        assert (ranks.data_rank, ranks.data_size) == (ranks.rank // 2, 2)
        share = float(ranks.data_rank + 1)
        assert ranks.reduce_sum(torch.tensor([share], dtype=torch.float64)).item() == 3
        assert ranks.gather(torch.tensor([share])).flatten().tolist() == [1, 2]
        assert ranks.gather_objects(share) == [1, 2]
        assert ranks.objects_to_first(share) == ([1, 2] if ranks.is_first else [])
        assert ranks.gather_from_all(ranks.rank) == ([0, 1, 2, 3] if ranks.is_first else [])
        assert ranks.any(ranks.rank == 3)
        channel = RankChannel()
        assert channel.shares == 2
        assert channel.to_first(f"rows of share {ranks.data_rank}") == (
            ["rows of share 0", "rows of share 1"] if ranks.is_first else None
        )
        assert channel.scatter(["a", "b"] if ranks.is_first else None) == "ab"[ranks.data_rank]
        channel.close()


def test_ranks_that_share_their_sequences_count_as_one() -> None:
    assert fork_ranks(4, _share) == []


def test_a_layout_that_does_not_divide_the_ranks_is_refused() -> None:
    refused = pytest.raises(ValueError, match="tensor 2 × context 1, which does not divide the 1 ranks")
    with refused, joined("cpu", ParallelConfig(tensor=2)):
        pass


def test_a_local_error_is_not_a_lost_rank() -> None:
    assert not lost_another(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
