"""What the engine does when a broadcast of weights fails. That one succeeds takes the real server: tests/local."""

import asyncio
import urllib.request
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from areal_api.config import RolloutConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.engine import ModelRequest, RemoteSGLangEngine
from areal_trainer.rollout.client import Client
from areal_trainer.rollout.publishing import WeightUpdateError
from areal_trainer.weights import WeightUpdate, publish_to_disk
from support.scripted_server import ScriptedServer


class FailingBroadcast:
    """A group that the scripted server, which has no route for it, never joins."""

    backend, address, group_name, connected = "gloo", "127.0.0.1", "group-1", False

    def __init__(self):
        self.closed = 0

    def plan_group(self):
        return self.group_name, 12345

    def connect(self, world_size):
        self.world_size = world_size
        raise RuntimeError("no server joined")

    def close(self):
        self.closed += 1


@pytest.fixture
def published(tmp_path):
    """A directory of weights as the trainer publishes it."""
    policy = SimpleNamespace(
        named_full_tensors=lambda: iter([("a.weight", torch.ones(4))]), save_model_config=lambda directory: None
    )
    return publish_to_disk(policy, run=tmp_path, version=1, dtype=torch.float32, writes=True)


@contextmanager
def engine_on(*servers):
    engine = RemoteSGLangEngine(RolloutConfig(consumer_batch_size=2, setup_timeout=5.0))
    engine.initialize([server.address for server in servers])
    try:
        yield engine
    finally:
        engine.destroy()


def test_servers_that_miss_a_broadcast_load_from_disk(published):
    with ScriptedServer() as first, ScriptedServer() as second, engine_on(first, second) as engine:
        broadcast = FailingBroadcast()
        engine.update_weights(WeightUpdate(1, path=published, broadcast=broadcast))
        assert (broadcast.world_size, broadcast.closed > 0) == (3, True)
        request = ModelRequest([3, 4], GenerationHyperparameters(max_new_tokens=4))
        assert set(asyncio.run(engine.agenerate(request)).output_versions) == {1}


def test_a_failed_broadcast_without_a_directory_is_an_error_and_leaves_no_server_paused():
    with ScriptedServer() as server, engine_on(server) as engine:
        with pytest.raises(
            WeightUpdateError, match=r"no server took weights v1 by broadcast.*init_weights_update_group"
        ):
            engine.update_weights(WeightUpdate(1, broadcast=FailingBroadcast()))
        assert server.counts.get("/pause_generation", 0) <= server.counts["/continue_generation"]
        assert engine.servers_behind()


class BreakingBroadcast(FailingBroadcast):
    """A group that every server joins, and that breaks with the first tensors."""

    def connect(self, world_size):
        self.connected = True

    def buckets(self):
        raise RuntimeError("a server left")


def test_a_broadcast_that_breaks_off_leaves_no_server_paused(monkeypatch):
    played = {"/init_weights_update_group", "/begin_weight_update", "/end_weight_update"}
    post = Client.post

    async def answered(client, url, body, **limits):
        return {"success": True} if url.path in played else await post(client, url, body, **limits)

    monkeypatch.setattr(Client, "post", answered)
    with ScriptedServer() as server, engine_on(server) as engine:
        with pytest.raises(WeightUpdateError, match="a server left"):
            engine.update_weights(WeightUpdate(1, broadcast=BreakingBroadcast()))
        assert server.counts["/pause_generation"] == 1
        assert urllib.request.urlopen(f"http://{server.address}/ready", timeout=5).status == 200  # 503 while paused


def test_a_dead_server_is_left_out_of_the_group(published):
    with ScriptedServer() as first, ScriptedServer() as second, engine_on(first, second) as engine:
        first.kill()
        broadcast = FailingBroadcast()
        engine.update_weights(WeightUpdate(1, path=published, broadcast=broadcast))
        assert broadcast.world_size == 2
