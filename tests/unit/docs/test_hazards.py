"""Guards against what SGLang does to a careless trainer. docs/hazards.md lists them all, with the tests elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from areal_api.config import RolloutConfig
from areal_api.generation import GenerationHyperparameters
from areal_launcher.core import servers
from areal_launcher.core.checks import check_servers_model
from areal_launcher.core.place import PORT, ProcessSpec
from areal_launcher.core.servers import Server
from areal_launcher.places.local.place import LocalPlace
from areal_trainer.engine import RemoteSGLangEngine
from areal_trainer.model.policy import Policy
from areal_trainer.ranks import Ranks
from areal_trainer.rollout.make_workflow import vocabulary_size
from areal_trainer.servers.client import Client
from areal_trainer.weights.disk import WeightUpdate, latest_published, publish_to_disk
from support.engines import start_generating
from support.operator_objects import decide, manifest, state
from support.scripted_server import Script, ScriptedServer
from support.tiny_policy import VOCABULARY, actor_config, save_tiny_model

LONGEST_UPDATE_S = 600  # of a large model from a slow disk
UNHEALTHY_AFTER_S = 20  # SGLang answers /health with 503 only after it, while it is paused


@pytest.fixture
def posted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Every administrative request: its path and body."""
    requests: list[tuple[str, Any]] = []
    original: Callable[..., Any] = Client.post

    async def post(self: Client, url: Any, body: Any, **limits: Any) -> Any:
        requests.append((url.path, body))
        return await original(self, url, body, **limits)

    monkeypatch.setattr(Client, "post", post)
    return requests


def test_an_update_retracts_what_runs_and_aborts_nothing(posted: list[tuple[str, Any]], tmp_path: Path) -> None:
    """in_place would keep the old weights' cache; an abort of a request that a pause holds back is lost."""
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {}}))
    gconfig = GenerationHyperparameters(max_new_tokens=200, ignore_eos=True)
    engine = RemoteSGLangEngine(RolloutConfig(consumer_batch_size=2, setup_timeout=5.0))
    with ScriptedServer(Script(token_s=0.002)) as server:
        engine.initialize([server.address])
        try:
            answers = start_generating(engine, 2, gconfig)
            engine.update_weights(WeightUpdate(1, tmp_path))
            assert [len(answer.output_tokens) for answer in answers.result(10)] == [200, 200]
        finally:
            engine.destroy()
    pauses = [body for path, body in posted if path == "/pause_generation"]
    assert pauses == [{"mode": "retract"}]
    assert not any(path == "/abort_request" or body.get("abort_all_requests") for path, body in posted)


def test_the_vocabulary_is_the_models_own_without_what_sglang_pads(tmp_path: Path) -> None:
    """SGLang takes ids in its padding in silence."""
    assert VOCABULARY % 64
    assert vocabulary_size(str(save_tiny_model(tmp_path))) == VOCABULARY


@pytest.mark.parametrize(
    ("parameter", "message"),
    [(nn.Parameter(torch.ones(31)), r"model.norm.weight is \[31\]"), (None, "has lost model.norm.weight")],
    ids=["wrong shape", "missing"],
)
def test_weights_that_are_not_of_the_models_shape_are_not_published(
    tmp_path: Path, parameter: nn.Parameter | None, message: str
) -> None:
    policy = Policy(actor_config(save_tiny_model(tmp_path / "model")), device="cpu", total_steps=1, seed=1)
    policy.model.causal_lm.model.norm.weight = parameter
    with pytest.raises(RuntimeError, match=message):
        publish_to_disk(policy, run=tmp_path, version=1, dtype=torch.float32, ranks=Ranks.current())
    assert latest_published(tmp_path) is None


def test_servers_do_not_start_from_a_model_of_another_shape_than_is_trained(tmp_path: Path) -> None:
    actor, wider = save_tiny_model(tmp_path / "actor"), save_tiny_model(tmp_path / "wider", intermediate_size=64)
    check_servers_model(str(actor), str(actor))
    check_servers_model("a/name-on-the-hub", str(actor))
    with pytest.raises(ValueError, match=r"sglang.model_path: .* has intermediate_size 64, actor.path 48"):
        check_servers_model(str(wider), str(actor))


def test_a_pod_that_is_paused_for_an_update_is_not_killed() -> None:
    pod = manifest(decide(state()), "StatefulSet")["spec"]["template"]["spec"]
    probe = pod["containers"][0]["livenessProbe"]
    assert probe["timeoutSeconds"] > UNHEALTHY_AFTER_S
    assert probe["periodSeconds"] * probe["failureThreshold"] >= LONGEST_UPDATE_S


def test_a_pod_that_loads_a_large_model_is_not_killed() -> None:
    pod = manifest(decide(state()), "StatefulSet")["spec"]["template"]["spec"]
    probe = pod["containers"][0]["startupProbe"]
    assert probe["httpGet"]["path"] == "/ready"
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 1800


def test_a_local_server_paused_for_an_update_is_not_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "responds", lambda address, path, timeout_s: True)
    spec = ProcessSpec("server", 0, ["sh", "-c", "sleep 60", PORT], {}, tmp_path / "log")
    place = LocalPlace()
    server = Server(
        place, spec, limits=servers.ServerLimits(startup_s=0.0, unhealthy_s=600.0), notify=lambda text: None
    )
    try:
        server.tick(any_served=False)
        assert server.state == "ready"
        monkeypatch.setattr(
            servers, "responds", lambda address, path, timeout_s: False
        )  # /ready is 503 while it is paused
        for _ in range(3):
            server.tick(any_served=False)
        assert (server.state, server.restarts) == ("ready", 0)
    finally:
        place.close()
