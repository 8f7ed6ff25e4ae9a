"""How much of the servers' time has no request."""

from __future__ import annotations

import pytest

from areal_trainer.servers.fleet import Fleet, Target
from areal_trainer.servers.idle import IdleTime


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_only_the_time_of_a_serving_server_counts() -> None:
    clock = Clock()
    idle = IdleTime(clock)
    for seconds, serving, busy in ((5.0, False, False), (3.0, True, True), (1.0, True, False)):
        clock.now += seconds
        idle.advance(serving=serving, busy=busy)
    assert idle.take() == (4.0, 1.0)
    assert idle.take() == (0.0, 0.0)


async def test_the_idle_share_is_of_all_current_servers_since_the_last_call() -> None:
    clock = Clock()
    fleet = Fleet(["busy:1", "late:1", "gone:1"], target=Target(0), wait_s=1.0)
    busy, late, gone = fleet.servers
    for server in fleet.servers:
        server.idle = IdleTime(clock)
    assert fleet.take_idle_share() is None  # none has served yet
    busy.state = late.state = "current"
    busy.add_load(2)
    clock.now = 6.0
    late.add_load(1)
    clock.now = 8.0
    busy.add_load(-2)
    fleet.mark_gone(gone, ConnectionError("no answer"))
    clock.now = 10.0
    assert fleet.take_idle_share() == pytest.approx((2.0 + 6.0) / 20.0)
    fleet.mark_gone(late, ConnectionError("lost"))
    clock.now = 14.0
    assert fleet.take_idle_share() == pytest.approx(1.0)  # the busy one has had nothing since
