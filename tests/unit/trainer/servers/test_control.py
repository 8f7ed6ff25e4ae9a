"""Servers that hang or load slowly during an update."""

import time
from pathlib import Path

import pytest

from areal_trainer.servers.control import ServerTimings
from areal_trainer.weights.disk import WeightUpdate
from support.engines import (
    engine_on,
    publish_ones,
    state_of,
)
from support.scripted_server import Fault, Script, ScriptedServer

HANGING = ("/pause_generation", "/continue_generation", "/update_weights_from_disk", "/ready", "/model_info")


TIMINGS = ServerTimings(probe_period_s=0.05, probe_timeout_s=0.2, max_backoff_s=0.05)


@pytest.fixture
def published(tmp_path):
    return publish_ones(tmp_path)


@pytest.mark.parametrize("first", HANGING[:3])
def test_an_update_leaves_behind_a_server_that_hangs_in_it(published: Path, first: str) -> None:
    healthy, hanging = ScriptedServer(), ScriptedServer()
    with healthy, hanging, engine_on(healthy, hanging, timings=TIMINGS) as engine:
        hanging.add_faults(*(Fault("hang", path, times=0) for path in {first, "/ready", "/model_info"}))
        started = time.monotonic()
        engine.update_weights(WeightUpdate(1, published))
        assert time.monotonic() - started < 5.0  # three probes; the update itself would time out after 30 s
        assert engine.get_version() == 1
        assert [server.state for server in engine.servers()] == ["current", "gone"]


def test_a_server_that_loads_slowly_but_answers_probes_is_waited_for(published: Path) -> None:
    with ScriptedServer(Script(load_s=1.5)) as server, engine_on(server, timings=TIMINGS) as engine:
        engine.update_weights(WeightUpdate(1, published))
        assert server.weight_version == "v1"
        assert state_of(engine, server) == "current"
