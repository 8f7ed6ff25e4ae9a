"""A server that hangs while weights are published: it holds up neither training nor the other servers for long."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from areal_api.config import RolloutConfig
from areal_trainer.engine import RemoteSGLangEngine
from areal_trainer.servers import fleet as fleet_module
from areal_trainer.weights.disk import WeightUpdate, publish_to_disk
from support.scripted_server import Fault, Script, ScriptedServer

HANGING = ("/pause_generation", "/continue_generation", "/update_weights_from_disk", "/ready", "/model_info")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    policy = SimpleNamespace(
        named_full_tensors=lambda: iter([("a.weight", torch.ones(4))]), save_model_config=lambda directory: None
    )
    return publish_to_disk(policy, run=tmp_path, version=1, dtype=torch.float32, writes=True)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "LONGEST_BACKOFF_S", 0.05)
    monkeypatch.setattr(fleet_module, "PROBE_PERIOD_S", 0.05)
    monkeypatch.setattr(fleet_module, "PROBE_TIMEOUT_S", 0.2)


def engine_on(*servers: ScriptedServer) -> RemoteSGLangEngine:
    engine = RemoteSGLangEngine(RolloutConfig(consumer_batch_size=2, setup_timeout=20.0, request_timeout=20.0))
    engine.initialize([server.address for server in servers])
    return engine


@pytest.mark.parametrize("first", HANGING[:3])
def test_an_update_leaves_behind_a_server_that_hangs_in_it(published: Path, first: str) -> None:
    with ScriptedServer() as sound, ScriptedServer() as hanging:
        engine = engine_on(sound, hanging)
        hanging.add_faults(*(Fault("hang", path, times=0) for path in {first, "/ready", "/model_info"}))
        started = time.monotonic()
        engine.update_weights(WeightUpdate(1, published))
        assert time.monotonic() - started < 5.0  # three probes; the update itself would be waited for 20 s and longer
        assert engine.get_version() == 1
        assert [server.state for server in engine._fleet.servers] == ["current", "gone"]
        engine.destroy()


def test_a_server_that_loads_for_long_and_says_that_it_lives_is_waited_for(published: Path) -> None:
    with ScriptedServer(Script(load_s=1.5)) as server:
        engine = engine_on(server)
        engine.update_weights(WeightUpdate(1, published))
        assert server.weight_version == "v1"
        assert engine._fleet.servers[0].state == "current"
        engine.destroy()
