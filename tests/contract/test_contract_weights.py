"""Weight updates from disk and by collective, and the weight version of each token."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from areal_api import names
from areal_trainer.ranks import Ranks
from areal_trainer.servers.fleet import NoServerError
from areal_trainer.weights.broadcast import Broadcast
from areal_trainer.weights.disk import MANIFEST, WeightUpdate, publish_to_disk, write_manifest
from areal_trainer.weights.file_server import FileServer
from support.engines import engine_on
from support.real_server import RealServer
from support.reference_logprobs import output_logprobs

from .conftest import KEY, Server

PROMPT = [5, 9, 14, 33, 21]
LONG = 400


async def update(server: Server, path: Path, version: str, **more: Any) -> None:
    body = {"model_path": str(path), "weight_version": version, **more}
    response = await server.post("/update_weights_from_disk", body)
    assert response.status_code == 200, response.text
    assert response.json()["success"] is True


def max_difference(models: dict[str, Path], answer: dict[str, Any]) -> float:
    """Largest log-prob difference to transformers, using for each token the weights of its reported version."""
    ids, meta = answer["output_ids"], answer["meta_info"]
    found = [logprob for logprob, _, _ in meta["output_token_logprobs"]]
    differences = []
    for span in meta["weight_versions"]:
        expected = output_logprobs(models[span["version"]], PROMPT, ids)
        differences += [abs(found[i] - expected[i]) for i in range(span["start"], span["end"])]
    assert len(differences) == len(ids)
    return max(differences)


async def test_update_from_disk_sets_the_version(server: Server, other_model: Path) -> None:
    await update(server, other_model, "v1")
    assert await server.version() == "v1"
    answer = await server.generate(PROMPT, max_new_tokens=2, ignore_eos=True)
    assert answer["meta_info"]["weight_versions"] == [{"version": "v1", "start": 0, "end": 2}]


async def test_path_without_a_model_is_rejected_and_nothing_changes(server: Server, tmp_path: Path) -> None:
    before = await server.version()
    body = {"model_path": str(tmp_path / "nothing"), "weight_version": "v9"}
    response = await server.post("/update_weights_from_disk", body)
    assert response.status_code == 400
    assert response.json()["success"] is False
    assert response.json()["message"]
    assert await server.version() == before
    assert len((await server.generate(PROMPT, max_new_tokens=2, ignore_eos=True))["output_ids"]) == 2


async def test_update_without_a_pause_waits_for_running_requests(server: Server, model: Path) -> None:
    """With flush_cache SGLang may return 400 although it loaded the weights, because a request that has just ended
    still counts as running for an instant. The trainer therefore pauses first."""
    task = await server.start(PROMPT, max_new_tokens=100, ignore_eos=True)
    await update(server, model, "v2", flush_cache=False)
    await server.post("/flush_cache", {})
    assert task.done()
    assert (await task).json()["meta_info"]["weight_versions"][-1]["version"] != "v2"


async def test_update_during_a_pause_does_not_wait_and_both_versions_are_reported(server: Server, model: Path) -> None:
    await update(server, model, "v3")
    task = await server.start(PROMPT, max_new_tokens=LONG, ignore_eos=True)
    await asyncio.sleep(0.2)
    await server.post("/pause_generation", {"mode": "retract"})
    await update(server, model, "v4")
    assert not task.done()
    await server.post("/continue_generation", {})
    meta = (await task).json()["meta_info"]
    first, second = meta["weight_versions"]
    assert (first["version"], first["start"]) == ("v3", 0)
    assert (second["version"], second["end"]) == ("v4", LONG)
    assert 0 < first["end"] == second["start"] < LONG
    assert meta["weight_version"] == "v4"


async def test_aborted_response_has_its_weight_version(server: Server, model: Path) -> None:
    await update(server, model, "v5")
    task = await server.start(PROMPT, max_new_tokens=LONG, ignore_eos=True)
    await asyncio.sleep(0.1)
    await server.post("/pause_generation", {"mode": "abort"})
    await update(server, model, "v6")
    meta = (await task).json()["meta_info"]
    assert [span["version"] for span in meta["weight_versions"]] == ["v5"]
    assert meta["weight_versions"][0]["end"] == meta["completion_tokens"]


async def test_version_can_be_set_without_weights(server: Server) -> None:
    response = await server.post("/update_weight_version", {"new_version": "v7", "abort_all_requests": False})
    assert response.status_code == 200
    assert await server.version() == "v7"


# Tests that need a model


@pytest.mark.real
async def test_weights_from_disk_take_effect(sglang: Server, model: Path, other_model: Path) -> None:
    """Even if the prompt is cached with the old weights."""
    await sglang.generate(PROMPT, max_new_tokens=20, ignore_eos=True)
    await update(sglang, other_model, "v1")
    answer = await sglang.generate(PROMPT, max_new_tokens=20, ignore_eos=True)
    assert max_difference({"v1": other_model}, answer) < 1e-4


@pytest.mark.real
async def test_weights_that_a_server_has_downloaded_take_effect(
    sglang: Server, other_model: Path, tmp_path: Path
) -> None:
    published = tmp_path / "v1"
    shutil.copytree(other_model, published)
    write_manifest(published, 1, {})
    with FileServer(tmp_path, port=0, api_key=KEY) as files:
        request = {
            "url": f"http://127.0.0.1:{files.port}",
            "version": "v1",
            "files": json.loads((published / MANIFEST).read_text())["files"],
        }
        response = await sglang.post(names.SERVER_WEIGHTS_PATH, request)
        assert response.status_code == 200, response.text
        refused = await sglang.post(names.SERVER_WEIGHTS_PATH, {**request, "version": "../v1"})
        assert refused.status_code == 400
    await update(sglang, Path(response.json()["path"]), "v1")
    answer = await sglang.generate(PROMPT, max_new_tokens=20, ignore_eos=True)
    assert max_difference({"v1": other_model}, answer) < 1e-4


class PartlyChanged:
    """A policy of the tensors of ``model``, of which the layers are those of ``other`` once ``changed`` is set."""

    def __init__(self, model: Path, other: Path) -> None:
        self.model, self.other, self.changed = model, other, False

    def named_full_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        tensors, others = (load_file(path / "model.safetensors") for path in (self.model, self.other))
        for name, tensor in tensors.items():
            yield name, others[name] if self.changed and name.endswith("down_proj.weight") else tensor

    def named_own_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self.named_full_tensors()

    def buffers(self) -> dict[str, torch.Tensor]:
        return {}

    def save_model_config(self, directory: Path) -> None:
        shutil.copyfile(self.model / "config.json", directory / "config.json")


@pytest.mark.real
async def test_a_delta_of_the_weights_that_a_server_has_downloaded_takes_effect(
    sglang: Server, model: Path, other_model: Path, tmp_path: Path
) -> None:
    policy = PartlyChanged(model, other_model)
    with FileServer(tmp_path / "weights", port=0, api_key=KEY) as files:
        for version in (1, 2):
            policy.changed = version == 2
            ranks = Ranks.current()
            path = publish_to_disk(policy, run=tmp_path, version=version, dtype=torch.float32, ranks=ranks, deltas=True)
            manifest = json.loads((path / MANIFEST).read_text())
            whole = (path / "model.safetensors").rename(tmp_path / "whole") if version == 2 else None
            request = {"url": f"http://127.0.0.1:{files.port}", "version": path.name, "files": manifest["files"]}
            response = await sglang.post(names.SERVER_WEIGHTS_PATH, {**request, "deltas": manifest["deltas"]})
            assert response.status_code == 200, response.text
            await update(sglang, Path(response.json()["path"]), path.name)
    assert whole is not None
    whole.rename(path / "model.safetensors")
    answer = await sglang.generate(PROMPT, max_new_tokens=20, ignore_eos=True)
    assert [span["version"] for span in answer["meta_info"]["weight_versions"]] == ["v2"]
    assert max_difference({"v2": path}, answer) < 1e-4


@pytest.mark.real
async def test_running_requests_continue_with_weights_from_disk(sglang: Server, model: Path, other_model: Path) -> None:
    tasks = [await sglang.start(PROMPT, max_new_tokens=LONG, ignore_eos=True) for _ in range(4)]
    await asyncio.sleep(0.3)
    await sglang.post("/pause_generation", {"mode": "retract"})
    await update(sglang, other_model, "v1")
    await sglang.post("/continue_generation", {})
    for task in tasks:
        answer = (await task).json()
        assert [span["version"] for span in answer["meta_info"]["weight_versions"]] == ["default", "v1"]
        assert max_difference({"default": model, "v1": other_model}, answer) < 1e-4


@pytest.fixture(params=["wrong shape", "missing"])
def corrupted(request: pytest.FixtureRequest, other_model: Path, tmp_path: Path) -> Path:
    """A completely published version in which one tensor was changed afterwards."""
    version = tmp_path / "v5"
    shutil.copytree(other_model, version)
    write_manifest(version, 5, {})
    file = version / "model.safetensors"
    tensors = load_file(file)
    norm = tensors.pop("model.norm.weight")
    if request.param == "wrong shape":
        tensors["model.norm.weight"] = norm[:-1].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    return version


@pytest.mark.real
@pytest.mark.parametrize("corrupted", ["missing"], indirect=True)
async def test_sglang_reports_success_for_a_missing_tensor(sglang: Server, corrupted: Path, other_model: Path) -> None:
    """For a tensor of the wrong shape it does the same, or crashes."""
    await update(sglang, corrupted, "v5")
    answer = await sglang.generate(PROMPT, max_new_tokens=20, ignore_eos=True)
    assert max_difference({"v5": other_model}, answer) > 1e-2


@pytest.mark.real
async def test_trainer_never_sends_a_misshapen_or_missing_tensor(
    sglang: Server, real_process: RealServer, key_file: Path, corrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(names.API_KEY_FILE, str(key_file))

    def join() -> None:
        with engine_on(real_process.address, weights=WeightUpdate(5, corrupted), setup_timeout=3.0):
            pass

    with pytest.raises(NoServerError, match="published weights cannot be loaded"):
        await asyncio.to_thread(join)
    assert await sglang.version() == "default"


@pytest.fixture
def broadcast(other_model: Path) -> Broadcast:
    weights = AutoModelForCausalLM.from_pretrained(other_model, dtype=torch.float32)
    tied = "lm_head.weight"  # tied to the embedding: sent once
    return Broadcast(
        lambda: ((name, tensor) for name, tensor in weights.state_dict().items() if name != tied),
        device=torch.device("cpu"), dtype=torch.float32, timeout_s=30.0,
    )  # fmt: skip


async def join(server: Server, broadcast: Broadcast) -> None:
    plan = broadcast.plan_group(["127.0.0.1:1"])
    body = {
        "master_address": plan.address, "master_port": plan.port, "rank_offset": 1, "world_size": 2,
        "group_name": plan.name, "backend": "gloo",
    }  # fmt: skip
    joined = asyncio.create_task(server.post("/init_weights_update_group", body))
    await asyncio.to_thread(broadcast.connect, 2)
    assert (await joined).json()["success"] is True


async def send(server: Server, broadcast: Broadcast, version: str) -> None:
    assert (await server.post("/begin_weight_update", {"selector": "all"})).status_code == 200
    buckets = list(broadcast.buckets())
    for i, bucket in enumerate(buckets):
        last = i == len(buckets) - 1
        body = {
            **bucket.request(broadcast.group_name),
            "flush_cache": last,
            "weight_version": version if last else None,
        }
        received = asyncio.create_task(server.post("/update_weights_from_distributed", body))
        await asyncio.to_thread(broadcast.send, bucket)
        response = await received
        assert response.status_code == 200, response.text
    assert (await server.post("/end_weight_update", {})).status_code == 200


@pytest.mark.real
async def test_collective_update_reaches_running_requests(
    sglang: Server, model: Path, other_model: Path, broadcast: Broadcast
) -> None:
    await join(sglang, broadcast)
    try:
        task = await sglang.start(PROMPT, max_new_tokens=LONG, ignore_eos=True)
        await asyncio.sleep(0.3)
        await sglang.post("/pause_generation", {"mode": "retract"})
        await send(sglang, broadcast, "v1")
        await sglang.post("/continue_generation", {})
        answer = (await task).json()
        assert await sglang.version() == "v1"
        assert [span["version"] for span in answer["meta_info"]["weight_versions"]] == ["default", "v1"]
        assert max_difference({"default": model, "v1": other_model}, answer) < 1e-4
        fresh = await sglang.generate(PROMPT, max_new_tokens=20, ignore_eos=True)
        assert max_difference({"v1": other_model}, fresh) < 1e-4
    finally:
        await sglang.post("/destroy_weights_update_group", {"group_name": broadcast.group_name})
        broadcast.close()


@pytest.mark.real
async def test_collective_update_outside_begin_and_end_is_rejected_at_once(
    sglang: Server, broadcast: Broadcast
) -> None:
    """Otherwise the trainer would start a broadcast in which the server does not participate."""
    await join(sglang, broadcast)
    try:
        bucket = next(broadcast.buckets())
        body = {**bucket.request(broadcast.group_name), "flush_cache": True, "weight_version": "v1"}
        response = await asyncio.wait_for(sglang.post("/update_weights_from_distributed", body), 10.0)
        assert response.status_code == 400
        assert await sglang.version() == "default"
    finally:
        await sglang.post("/destroy_weights_update_group", {"group_name": broadcast.group_name})
        broadcast.close()


@pytest.mark.real
async def test_broadcast_fails_when_a_server_leaves_the_group(sglang: Server, broadcast: Broadcast) -> None:
    """This also happens to servers that would receive from one that rejected the tensors."""
    await join(sglang, broadcast)
    sending = asyncio.create_task(asyncio.to_thread(broadcast.send, next(broadcast.buckets())))
    done, _ = await asyncio.wait([sending], timeout=0.5)
    assert not done
    left = await sglang.post("/destroy_weights_update_group", {"group_name": broadcast.group_name})
    assert left.status_code == 200
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        await asyncio.wait_for(sending, 10.0)  # its own timeout is 30 s
    broadcast.close()
