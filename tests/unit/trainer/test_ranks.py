"""Detection of lost ranks."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

from areal_trainer.ranks import lost_another


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


def test_a_local_error_is_not_a_lost_rank() -> None:
    assert not lost_another(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
