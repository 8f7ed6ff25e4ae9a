"""Health checks of local servers."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Callable

import pytest

from areal_launcher.core.health import HealthCheck, responds

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
DEADLINE_S = 30.0


class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def address() -> str:
    server = http.server.HTTPServer(("127.0.0.1", 0), Ready)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"127.0.0.1:{server.server_port}"


def test_health_checks_bypass_a_proxy(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert responds(address, "/ready", timeout_s=1.0)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 503 x\r\n\r\n", b"HTTP/1.1 2000\r\n", b"\x00" * 3000])
def test_only_status_200_is_ready(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reply() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        assert not responds(f"127.0.0.1:{listener.getsockname()[1]}", "/ready", timeout_s=1.0)
        thread.join()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_failures_are_counted_until_a_check_succeeds(address: str) -> None:
    healthy = HealthCheck(address, period_s=0.02, timeout_s=1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        failing = HealthCheck(f"127.0.0.1:{silent.getsockname()[1]}", period_s=0.05, timeout_s=1.0)
        eventually(lambda: failing.failures >= 3)
        assert healthy.failures == 0
        failing.stop()
    healthy.stop()


def test_checks_end_when_they_are_stopped(address: str) -> None:
    check = HealthCheck(address, period_s=0.02, timeout_s=1.0)
    [thread] = [thread for thread in threading.enumerate() if thread.name == f"health of {address}"]
    check.stop()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
