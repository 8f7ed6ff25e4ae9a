"""A real server that is told to end, and logs as JSON: it answers what it has begun, then goes."""

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
class End:
    """What was seen of a server after SIGTERM."""

    answers: list[int] = field(default_factory=list)  # tokens of each
    unready_before_the_answers: bool = False
    late: int = 0  # requests that it was asked afterwards, one after the other, until it was gone
    status: int | None = None
    log: str = ""


def running(client: httpx.Client) -> int:
    """Requests that are being decoded."""
    return sum(load["num_running_reqs"] for load in client.get("/v1/loads").json()["loads"])


def watch_end(server: RealServer) -> End:
    """Send requests, SIGTERM while they run, and watch until the process is gone."""
    end = End()
    client = httpx.Client(base_url=f"http://{server.address}", timeout=LONGEST_S, trust_env=False)

    def ask() -> None:
        body = request([5, 9, 14], max_new_tokens=TOKENS, ignore_eos=True)
        end.answers.append(len(client.post("/generate", json=body).json()["output_ids"]))

    threads = [threading.Thread(target=ask) for _ in range(REQUESTS)]
    for thread in threads:
        thread.start()
    eventually(lambda: running(client) == REQUESTS, "all requests run")
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: client.get("/ready").status_code == 503, "it takes no more requests")
    end.unready_before_the_answers = not end.answers
    for thread in threads:
        thread.join(LONGEST_S)
    # The last ones meet an engine that has ended, then no server; none may be left without an answer.
    with contextlib.suppress(httpx.NetworkError, httpx.RemoteProtocolError):
        while server.process.poll() is None:
            client.post("/generate", json=request([5, 9, 14], max_new_tokens=1))
            end.late += 1
            time.sleep(0.2)
    end.status = server.process.wait(LONGEST_S)
    end.log = server.log.read_text(errors="replace")
    return end


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[End]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AREAL_LOG_FORMAT", "json")
        with real_server(tmp_path_factory.mktemp("ended"), model, max_total_tokens=16384) as server:
            yield watch_end(server)


def test_a_server_that_is_told_to_end_answers_what_it_has_begun(ended: End) -> None:
    assert ended.unready_before_the_answers
    assert ended.answers == [TOKENS] * REQUESTS


def test_it_then_ends_by_itself_whatever_it_is_asked_meanwhile(ended: End) -> None:
    assert ended.late > 0
    assert ended.status == 0


def test_every_line_of_a_logger_is_json_where_that_is_asked_for(ended: End) -> None:
    lines = ended.log.splitlines()
    told = [json.loads(line) for line in lines if line.startswith("{")]
    assert any("Draining requests" in line["message"] for line in told)
    assert any("GET /ready" in line["message"] for line in told)  # uvicorn's, whose loggers are its own
    as_text = re.compile(r"\[\d{4}-|(DEBUG|INFO|WARNING|ERROR)\b")  # SGLang's and uvicorn's
    assert [line for line in lines if as_text.match(line)] == []
