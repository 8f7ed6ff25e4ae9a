"""Readiness, health, model information, authentication, errors, signals."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

from areal_server.addresses import is_loopback
from support.real_server import RealServer, real_server

from .conftest import KEY, Server, request

PROMPT = [5, 9, 14, 33, 21]


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_health_and_readiness_need_no_key(server: Server, path: str) -> None:
    async with httpx.AsyncClient(base_url=f"http://{server.address}", timeout=30.0) as anonymous:
        assert (await anonymous.get(path)).status_code == 200


@pytest.mark.parametrize("path", ["/generate", "/update_weights_from_disk", "/pause_generation", "/abort_request"])
@pytest.mark.parametrize("header", [None, "Bearer wrong", KEY])
async def test_other_routes_require_the_key(server: Server, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    async with httpx.AsyncClient(base_url=f"http://{server.address}", timeout=30.0, headers=headers) as anonymous:
        response = await anonymous.post(path, json={})
        assert response.status_code == 401
        assert response.json() == {"error": "Unauthorized"}
        assert (await anonymous.get("/model_info")).status_code == 401


async def test_unknown_route_is_404(server: Server) -> None:
    assert (await server.get("/no_such_route")).status_code == 404


async def test_invalid_json_is_a_client_error(server: Server) -> None:
    response = await server.client.post("/generate", content=b"{", headers={"Content-Type": "application/json"})
    assert 400 <= response.status_code < 500


async def test_control_request_without_a_body_is_a_client_error(server: Server) -> None:
    assert 400 <= (await server.client.post("/pause_generation")).status_code < 500
    assert (await server.get("/ready")).status_code == 200


async def test_idle_server_flushes_its_cache(server: Server) -> None:
    assert (await server.post("/flush_cache", {})).status_code == 200


async def test_flushing_is_rejected_while_requests_run(server: Server) -> None:
    await server.start(PROMPT, max_new_tokens=400, ignore_eos=True)
    assert (await server.post("/flush_cache", {})).status_code == 400


async def test_loads_count_running_requests(server: Server) -> None:
    await server.start(PROMPT, max_new_tokens=400, ignore_eos=True)
    assert await server.running() == 1


async def test_server_info_has_the_size_of_the_cache_and_the_parallelism(server: Server) -> None:
    info = (await server.get("/server_info")).json()
    assert info["max_total_num_tokens"] > 0
    assert (info["tp_size"], info["dp_size"]) == (1, 1)


async def test_model_info_has_path_and_version(server: Server) -> None:
    info = (await server.get("/model_info")).json()
    assert isinstance(info["model_path"], str)
    assert isinstance(info["weight_version"], str)


# The process


@pytest.mark.real
async def test_metrics_are_served(sglang: Server) -> None:
    await sglang.generate(PROMPT, max_new_tokens=2)
    text = (await sglang.get("/metrics/")).text
    assert "sglang:num_running_reqs" in text
    assert "sglang:generation_tokens_total" in text


@pytest.mark.real
def test_key_is_not_in_arguments_environment_or_log(sglang: Server, real_process: RealServer) -> None:
    process = psutil.Process(real_process.process.pid)
    for member in [process, *process.children(recursive=True)]:
        assert KEY not in " ".join(member.cmdline())
        assert KEY not in " ".join(member.environ().values())
    log = real_process.log.read_text(errors="replace")
    assert "server_args=" in log
    assert KEY not in log


@pytest.mark.real
def test_server_on_a_loopback_address_listens_on_loopback_addresses_only(
    sglang: Server, real_process: RealServer
) -> None:
    process = psutil.Process(real_process.process.pid)
    sockets = [entry for member in [process, *process.children(recursive=True)] for entry in member.net_connections()]
    listening = {entry.laddr for entry in sockets if entry.status == psutil.CONN_LISTEN}
    assert ("127.0.0.1", int(sglang.address.rpartition(":")[2])) in listening
    assert not [address for address in listening if not is_loopback(address.ip)]


@pytest.mark.real
def test_batched_attention_backend_is_used(real_process: RealServer) -> None:
    assert "'attention_backend': 'areal_padded'" in real_process.log.read_text(errors="replace")


@pytest.mark.real
@pytest.mark.parametrize("paused", [False, True])
async def test_idle_server_uses_no_cpu(sglang: Server, real_process: RealServer, paused: bool) -> None:
    if paused:
        await sglang.post("/pause_generation", {"mode": "retract"})
    process = psutil.Process(real_process.process.pid)
    members = [process, *process.children(recursive=True)]

    def used() -> float:
        return sum(sum(member.cpu_times()[:2]) for member in members)

    await asyncio.sleep(0.5)
    before = used()
    await asyncio.sleep(2.0)
    assert used() - before < 0.5


@pytest.mark.real
def test_killed_server_leaves_no_processes(tmp_path: Path, model: Path) -> None:
    """Also checks that a server without a key needs no authentication."""
    with real_server(tmp_path / "killed", model, max_total_tokens=4096) as server:
        body = request(PROMPT, max_new_tokens=2, ignore_eos=True)
        assert len(httpx.post(f"http://{server.address}/generate", json=body, timeout=60.0).json()["output_ids"]) == 2
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert len(children) >= 2
        os.kill(server.process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 20.0
        while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
            assert time.monotonic() < deadline, f"still running 20 s after the kill: {children}"
            time.sleep(0.1)
