"""The publisher's fallback when a broadcast fails."""

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import torch

from areal_trainer.publisher import Publisher
from areal_trainer.ranks import Ranks
from areal_trainer.servers.weight_update import BroadcastError
from areal_trainer.weights.disk import WeightUpdate, verify_published
from support.engines import Ones


class CountingPolicy(Ones):
    """Two tensors; counts the collective gathers."""

    def __init__(self) -> None:
        super().__init__()
        self.gathered = 0

    def named_full_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name in ("a.weight", "b.weight"):
            self.gathered += 1
            yield name, torch.ones(4)


class BreakingEngine:
    """Consumes the first tensor of every broadcast, then fails."""

    def __init__(self) -> None:
        self.updates: list[WeightUpdate] = []

    def update_weights(self, update: WeightUpdate) -> None:
        self.updates.append(update)
        if update.broadcast is not None:
            next(update.broadcast.buckets())
            raise BroadcastError("a server refused")

    def update_weights_async(self, update: WeightUpdate) -> Future[None]:
        raise AssertionError("a broadcast must block")

    def servers_behind(self) -> bool:
        return False


def test_after_a_failed_broadcast_weights_are_published_through_files(tmp_path: Path) -> None:
    policy, engine = CountingPolicy(), BreakingEngine()
    ranks = Ranks(0, 1, torch.device("cpu"))
    publisher = Publisher(policy, engine, mode="distributed", run=tmp_path, dtype=torch.float32, ranks=ranks)
    publisher.publish(3, wait=False)
    assert [(update.version, update.broadcast is None) for update in engine.updates] == [(3, False), (3, True)]
    assert engine.updates[1].path is not None
    verify_published(engine.updates[1].path)
    assert policy.gathered == 4  # twice for the broadcast, although one was not sent, and twice for the files


def test_versions_have_deltas_if_they_are_asked_for(tmp_path: Path) -> None:
    ranks = Ranks(0, 1, torch.device("cpu"))
    for deltas in (False, True):
        run = tmp_path / str(deltas)
        publisher = Publisher(
            CountingPolicy(), None, mode="disk", run=run, dtype=torch.float32, ranks=ranks, deltas=deltas
        )
        publisher.publish(1, wait=True)
        publisher.publish(2, wait=True)
        assert (run / "weights/v2/model.safetensors.delta").exists() is deltas


class EngineWithOneBehind(BreakingEngine):
    """One server missed the last broadcast."""

    def update_weights(self, update: WeightUpdate) -> None:
        self.updates.append(update)

    def servers_behind(self) -> bool:
        return True


def test_a_broadcast_also_writes_files_while_a_server_is_behind(tmp_path: Path) -> None:
    engine, ranks = EngineWithOneBehind(), Ranks(0, 1, torch.device("cpu"))
    publisher = Publisher(CountingPolicy(), engine, mode="distributed", run=tmp_path, dtype=torch.float32, ranks=ranks)
    publisher.publish(3, wait=False)
    [update] = engine.updates
    assert update.broadcast is not None
    assert update.path is not None
    verify_published(update.path)
