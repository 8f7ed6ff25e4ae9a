"""The progress endpoint with a fake API server, over real connections: tokens, slow and many clients, large bodies."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_api import http_server, resource_names
from areal_api.http_server import MAX_HEADER_BYTES, LimitedProtocol
from areal_operator.cluster import ApiError, path_of
from areal_operator.progress import ProgressReceiver, interval_s, make_app

UID = "0b5c0d94-94c7-4d3c-8a8c-1c1f3a6c7e55"
OTHER_UID = "11111111-94c7-4d3c-8a8c-1c1f3a6c7e55"
PATH = "/v1/namespaces/ns/experiments/exp/progress"


AUDIENCE = resource_names.progress_audience(UID)


def token(audience: Any = AUDIENCE, signature: str = "valid") -> str:
    """A token with an unverified audience; the fake API server accepts the signature ``valid``."""
    claims = base64.urlsafe_b64encode(json.dumps({"aud": [audience]}).encode()).decode().rstrip("=")
    return f"e30.{claims}.{signature}"


@pytest.mark.parametrize(("experiments", "seconds"), [(0, 3.0), (100, 3.0), (1000, 25.0)])
def test_many_experiments_report_less_often(experiments: int, seconds: float) -> None:
    assert interval_s(experiments) == seconds


class FakeCluster:
    """An API server with one experiment ``ns/exp``."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.user = "system:serviceaccount:ns:exp-run"
        self.available = True

    async def review_token(self, text: str, audience: str) -> str | None:
        self.calls.append(("review", audience))
        if not self.available:
            raise ApiError(503, "", "down")
        return self.user if text.endswith(".valid") else None

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        self.calls.append(("get", namespace, name))
        return {"metadata": {"uid": UID}, "status": {"step": 1}} if (namespace, name) == ("ns", "exp") else None

    async def apply(self, manifest: dict[str, Any], **_: str) -> None:
        self.calls.append(("apply", json.dumps(manifest["status"])))


class Service:
    """The endpoint, running in a thread."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        app = make_app(ProgressReceiver(cluster))  # type: ignore[arg-type]
        config = uvicorn.Config(
            app, port=0, http=LimitedProtocol, h11_max_incomplete_event_size=MAX_HEADER_BYTES, log_level="error"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        deadline = time.monotonic() + 30.0
        while not self._server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    @property
    def port(self) -> int:
        return int(self._server.servers[0].sockets[0].getsockname()[1])

    def post(self, path: str = PATH, bearer: str | None = None, content: bytes = b'{"step": 3}') -> httpx.Response:
        headers = {"Authorization": f"Bearer {bearer or token()}"}
        return httpx.post(
            f"http://127.0.0.1:{self.port}{path}", content=content, headers=headers, trust_env=False, timeout=30.0
        )

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(30.0)


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service(FakeCluster())
    yield service
    service.stop()


def test_a_report_with_the_experiments_token_is_written(service: Service) -> None:
    assert service.post().status_code == 202
    service.stop()
    assert json.loads(service.cluster.calls[-1][1])["step"] == 3
    assert [call[0] for call in service.cluster.calls] == ["review", "get", "apply"]


@pytest.mark.parametrize(
    ("path", "bearer"),
    [
        (PATH, "nonsense"),
        (PATH, token(signature="forged")),
        (PATH, token(resource_names.progress_audience(OTHER_UID))),
        (PATH, token("https://kubernetes.default.svc")),
        (PATH, token(["a"])),
        (PATH, token("progress.areal.dev/../../x")),
        (PATH.replace("/exp/", "/none/"), token()),
        (PATH.replace("/ns/", "/other/"), token()),
        (PATH.replace("/exp/", "/%3Fwatch=true/"), token()),
    ],
)
def test_every_failed_authentication_has_the_same_answer(service: Service, path: str, bearer: str) -> None:
    response = service.post(path, bearer)
    assert (response.status_code, response.json()) == (401, {"detail": "a token of this experiment is required"})


def test_the_path_of_a_request_never_reaches_the_api_server(service: Service) -> None:
    for name in ("%3Fwatch=true", "%2e%2e", "a%2Fb", "x%00", "none"):
        service.post(PATH.replace("/exp/", f"/{name}/"))
        service.post(PATH.replace("/exp/", f"/{name}/"), token(signature="forged"))
    assert {call for call in service.cluster.calls if call[0] == "get"} == {("get", "ns", "exp")}


@pytest.mark.parametrize(
    "user",
    [
        "admin",
        "system:serviceaccount:ns:default",
        "system:serviceaccount:ns:-run",
        "system:serviceaccount:ns/x:exp-run",
        "system:serviceaccount:..:exp-run",
    ],
)
def test_a_token_of_another_user_is_refused(service: Service, user: str) -> None:
    service.cluster.user = user
    assert service.post().status_code == 401
    assert [call for call in service.cluster.calls if call[0] == "get"] == []


def test_a_body_is_not_read_before_the_token_is_valid(service: Service) -> None:
    async def unfinished(bearer: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {bearer}\r\nContent-Length: 1000\r\n\r\n"
        writer.write(head.encode())
        answer = await asyncio.wait_for(reader.read(15), 5.0)
        writer.close()
        return answer

    assert asyncio.run(unfinished("nonsense")).startswith(b"HTTP/1.1 401")


def test_large_bodies_and_headers_are_refused(service: Service) -> None:
    assert service.post(content=b"x" * 70_000).status_code == 413
    assert service.post(bearer="x" * (4 * MAX_HEADER_BYTES)).status_code in (400, 401)


def test_an_unavailable_api_server_is_a_503_without_details(service: Service) -> None:
    service.cluster.available = False
    response = service.post()
    assert (response.status_code, "down" in response.text) == (503, False)


def test_connections_without_a_request_are_closed(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEADER_S", 0.5)

    async def slow() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(b"POST / HTTP/1.1\r\nHost")
        try:
            return await asyncio.wait_for(reader.read(), 5.0)
        except ConnectionError:
            return b""
        finally:
            writer.close()

    assert asyncio.run(slow()) == b""


def test_a_flood_of_one_peer_is_limited(service: Service) -> None:
    async def flood() -> int:
        connections = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(200)]
        await asyncio.sleep(0.5)
        left = sum(not reader.at_eof() and reader.exception() is None for reader, _ in connections)
        for _, writer in connections:
            writer.close()
        return left

    assert asyncio.run(flood()) <= http_server.MAX_CONNECTIONS_PER_PEER
    time.sleep(0.2)
    assert service.post().status_code == 202


@settings(deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_a_token_or_none(text: str) -> None:
    receiver = ProgressReceiver(FakeCluster())  # type: ignore[arg-type]
    assert asyncio.run(receiver.authenticate(text)) is None


def test_names_are_quoted_in_paths() -> None:
    assert path_of("Pod", "a/b", "x?watch=true") == "/api/v1/namespaces/a%2Fb/pods/x%3Fwatch%3Dtrue"
    with pytest.raises(AssertionError):
        path_of("Pod", "..", "x")
