"""A real server on SIGTERM with JSON logging: it completes running requests, then exits."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from hack.testbed.kube_api import eventually
from support.real_server import RealServer, real_server

from .conftest import request

pytestmark = pytest.mark.real
REQUESTS, TOKENS = 4, 1000
LONGEST_S = 120.0


@dataclass
class Shutdown:
    """Observations of a server after SIGTERM."""

    completed: list[int] = field(default_factory=list)  # tokens of each response
    unready_before_completion: bool = False
    late: int = 0  # requests sent after that, one at a time, until the server exited
    status: int | None = None
    log: str = ""


def running(client: httpx.Client) -> int:
    """Number of requests being decoded."""
    return sum(load["num_running_reqs"] for load in client.get("/v1/loads").json()["loads"])


def observe_shutdown(server: RealServer) -> Shutdown:
    """Send requests, then SIGTERM while they run, and observe until the process exits."""
    end = Shutdown()
    client = httpx.Client(base_url=f"http://{server.address}", timeout=LONGEST_S, trust_env=False)

    def send() -> None:
        body = request([5, 9, 14], max_new_tokens=TOKENS, ignore_eos=True)
        end.completed.append(len(client.post("/generate", json=body).json()["output_ids"]))

    threads = [threading.Thread(target=send) for _ in range(REQUESTS)]
    for thread in threads:
        thread.start()
    eventually(lambda: running(client) == REQUESTS, "all requests are running")
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: client.get("/ready").status_code == 503, "it is not ready")
    end.unready_before_completion = not end.completed
    # The first of these requests are sent while others run, the last to a stopped engine. None may hang.
    with contextlib.suppress(httpx.NetworkError, httpx.RemoteProtocolError):
        while server.process.poll() is None:
            client.post("/generate", json=request([5, 9, 14], max_new_tokens=1))
            end.late += 1
            time.sleep(0.2)
    for thread in threads:
        thread.join(LONGEST_S)
    end.status = server.process.wait(LONGEST_S)
    end.log = server.log.read_text(errors="replace")
    return end


@pytest.fixture(scope="module")
def shutdown(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Shutdown]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AREAL_LOG_FORMAT", "json")
        with real_server(tmp_path_factory.mktemp("shutdown"), model, max_total_tokens=16384) as server:
            yield observe_shutdown(server)


def test_running_requests_are_completed_after_sigterm(shutdown: Shutdown) -> None:
    assert shutdown.unready_before_completion
    assert shutdown.completed == [TOKENS] * REQUESTS


def test_server_exits_despite_late_requests(shutdown: Shutdown) -> None:
    assert shutdown.late > 0
    assert shutdown.status == 0


def test_every_log_line_is_json(shutdown: Shutdown) -> None:
    lines = shutdown.log.splitlines()
    records = [json.loads(line) for line in lines if line.startswith("{")]
    assert any("Draining requests" in line["message"] for line in records)
    assert any("GET /ready" in line["message"] for line in records)  # from uvicorn, which has its own loggers
    as_text = re.compile(r"\[\d{4}-|(DEBUG|INFO|WARNING|ERROR)\b")  # the text formats of SGLang and uvicorn
    assert [line for line in lines if as_text.match(line)] == []
