"""Failures of a weight broadcast. A successful broadcast needs real servers: see tests/local."""

import asyncio
import threading
import urllib.request

import pytest
import torch

from areal_api.generation import GenerationHyperparameters
from areal_trainer.engine import ModelRequest
from areal_trainer.servers.control import ServerTimings
from areal_trainer.servers.weight_update import BroadcastError, WeightUpdateError
from areal_trainer.weights.broadcast import Bucket, GroupPlan
from areal_trainer.weights.disk import WeightUpdate
from support.engines import (
    engine_on,
    generate,
    post,
    publish_ones,
)
from support.scripted_server import Fault, Script, ScriptedServer

UPDATE = "/update_weights_from_distributed"


GROUP = ("/init_weights_update_group", "/begin_weight_update", UPDATE, "/end_weight_update")


LEAVE, EXIT = "/destroy_weights_update_group", "/areal/exit"


TIMINGS = ServerTimings(probe_period_s=0.05, probe_timeout_s=0.5, abort_timeout_s=0.2)


@pytest.fixture
def published(tmp_path):
    return publish_ones(tmp_path)


class FailingBroadcast:
    """A group that the scripted server, which has no route for it, never joins."""

    backend, group_name, connected = "gloo", "group-1", False

    def __init__(self):
        self.closed = 0

    def plan_group(self, peers):
        self.peers = peers
        return GroupPlan(self.group_name, "127.0.0.1", 12345)

    def connect(self, world_size):
        self.world_size = world_size
        raise RuntimeError("no server joined")

    def abort(self):
        self.close()

    def close(self):
        self.closed += 1


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


def test_a_broadcast_that_breaks_off_leaves_no_server_paused():
    with ScriptedServer(Script(more_routes=GROUP)) as server, engine_on(server) as engine:
        with pytest.raises(WeightUpdateError, match="a server left"):
            engine.update_weights(WeightUpdate(1, broadcast=BreakingBroadcast()))
        assert server.counts["/pause_generation"] == 1
        assert urllib.request.urlopen(f"http://{server.address}/ready", timeout=5).status == 200  # 503 while paused


class WaitingBroadcast(FailingBroadcast):
    """A group that every server joins, and whose broadcast waits, as gloo's does, for servers that will not receive."""

    def __init__(self):
        super().__init__()
        self.aborted = threading.Event()

    def connect(self, world_size):
        self.connected = True

    def buckets(self):
        yield Bucket(["a.weight"], ["float32"], [[1]], torch.zeros(4, dtype=torch.uint8))

    def send(self, bucket):
        assert self.aborted.wait(20.0), "the stalled server was not detected"
        raise RuntimeError("given up")

    def abort(self):
        self.aborted.set()
        self.connected = False


def member(*faults):
    """A server that joins a group."""
    return ScriptedServer(Script(more_routes=(*GROUP, LEAVE, EXIT), faults=faults))


@pytest.mark.parametrize("kind", ["status", "die", "hang"])
def test_a_broadcast_ends_when_a_server_does_not_receive_and_the_servers_load_from_disk(published, kind):
    receiving, failing = member(Fault("hang", UPDATE)), member(Fault(kind, UPDATE, status=400))
    with receiving, failing, engine_on(receiving, failing, timings=TIMINGS) as engine:
        if kind == "hang":
            failing.add_faults(Fault("hang", "/ready", times=3))
        broadcast = WaitingBroadcast()
        engine.update_weights(WeightUpdate(1, path=published, broadcast=broadcast))
        assert (receiving.counts[UPDATE], broadcast.aborted.is_set()) == (1, True)
        assert "v1" in (receiving.weight_version, failing.weight_version)


def test_a_server_that_refuses_a_broadcast_leaves_the_group_so_that_nobody_waits_for_it():
    receiving, refusing = member(Fault("hang", UPDATE)), member(Fault("status", UPDATE, status=400))
    with receiving, refusing, engine_on(receiving, refusing, timings=TIMINGS) as engine:
        with pytest.raises(BroadcastError, match="scripted fault"):
            engine.update_weights(WeightUpdate(1, broadcast=WaitingBroadcast()))
        assert refusing.counts[LEAVE] >= 1
        assert receiving.counts["/continue_generation"] >= 1


def test_what_failed_as_a_broadcast_may_be_published_from_disk_and_the_run_goes_on(published):
    with member(Fault("status", UPDATE, status=400)) as server, engine_on(server, timings=TIMINGS) as engine:
        with pytest.raises(BroadcastError):
            engine.update_weights(WeightUpdate(1, broadcast=WaitingBroadcast()))
        engine.update_weights(WeightUpdate(1, path=published))
        assert (server.weight_version, engine.get_version()) == ("v1", 1)
        assert generate(engine)[0].output_versions == [1] * 40


def test_a_dead_server_is_left_out_of_the_group(published):
    with ScriptedServer() as first, ScriptedServer() as second, engine_on(first, second) as engine:
        first.kill()
        broadcast = FailingBroadcast()
        engine.update_weights(WeightUpdate(1, path=published, broadcast=broadcast))
        assert broadcast.world_size == 2


class WorkingBroadcast(FailingBroadcast):
    """A group that every server joins and whose broadcasts arrive; its name tells the planned groups apart."""

    planned = 0

    def __init__(self, *members):
        super().__init__()
        self.members = members
        self.version = 0

    @property
    def group_name(self):
        return f"group-{self.planned}"

    def plan_group(self, peers):
        self.planned += 1
        return super().plan_group(peers)

    def connect(self, world_size):
        self.connected = True

    def buckets(self):
        self.version += 1
        yield Bucket(["a.weight"], ["float32"], [[1]], torch.zeros(4, dtype=torch.uint8))

    def send(self, bucket):
        for server in self.members:
            post(server, "/update_weight_version", new_version=f"v{self.version}")


def test_a_change_of_servers_destroys_the_old_group_on_those_that_stay():
    with member() as stays, member() as dies, engine_on(stays, dies, timings=TIMINGS) as engine:
        broadcast = WorkingBroadcast(stays, dies)
        for version in (1, 2):
            engine.update_weights(WeightUpdate(version, broadcast=broadcast))
        assert (broadcast.planned, stays.counts.get(LEAVE)) == (1, None)
        dies.kill()
        broadcast.members = (stays,)
        engine.update_weights(WeightUpdate(3, broadcast=broadcast))
        assert (broadcast.planned, broadcast.peers) == (2, [stays.address])
        assert stays.counts[LEAVE] == 1
    assert stays.counts[LEAVE] == 2  # the servers outlive the trainer


def test_a_server_that_does_not_answer_after_a_failed_broadcast_is_told_to_exit(published):
    working, stuck = member(), member(Fault("hang", UPDATE), Fault("hang", "/end_weight_update"))
    with working, stuck, engine_on(working, stuck, timings=TIMINGS, broadcast_timeout=0.5) as engine:
        engine.update_weights(WeightUpdate(1, path=published, broadcast=WorkingBroadcast()))
        assert (stuck.counts.get(EXIT), working.counts.get(EXIT)) == (1, None)
        assert working.counts["/continue_generation"] >= 1
