"""What a rank knows of the others."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

from areal_trainer.ranks import lost_another


def _rank(number: int, store: str, told: Connection) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    dist.all_reduce(torch.zeros(1))
    if number == 1:
        os._exit(9)
    try:
        while True:
            dist.all_reduce(torch.zeros(1))
    except RuntimeError as error:
        told.send((lost_another(error), str(error)))


def test_a_rank_knows_that_another_one_is_gone(tmp_path: Path) -> None:
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(number, str(tmp_path / "store"), there)) for number in range(2)]
    for rank in ranks:
        rank.start()
    assert here.poll(60.0), "the rank that is left waits for the other"
    assert here.recv()[0] is True
    for rank in ranks:
        rank.join()


def test_an_error_of_its_own_is_none_of_the_others() -> None:
    assert not lost_another(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
