"""Credentials and connection errors of the API server client."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from areal_launcher.cluster import client
from areal_launcher.cluster.client import Cluster, ClusterTarget, Unreachable, chosen_context, kubeconfig
from areal_launcher.errors import RunError


def test_the_namespace_comes_from_the_context(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": "https://localhost:1"}}],
                "users": [{"name": "u", "user": {}}],
                "contexts": [
                    {"name": "one", "context": {"cluster": "c", "user": "u", "namespace": "team"}},
                    {"name": "two", "context": {"cluster": "c", "user": "u"}},
                ],
                "current-context": "one",
            }
        )
    )
    assert chosen_context(ClusterTarget(str(path))) == ("one", "team")
    assert chosen_context(ClusterTarget(str(path), context="two")) == ("two", "default")
    with pytest.raises(ValueError, match="the kubeconfig has no context three; set --context to one of one, two"):
        chosen_context(ClusterTarget(str(path), context="three"))


def kubeconfig_of(port: int, folder: Path) -> str:
    path = folder / "config"
    cluster = {"server": f"https://127.0.0.1:{port}", "insecure-skip-tls-verify": True}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    users = [{"name": "u", "user": {"token": "t"}}]
    config = {"clusters": [{"name": "c", "cluster": cluster}], "users": users, "contexts": [context]}
    path.write_text(json.dumps({**config, "current-context": "c"}))
    return str(path)


def test_a_server_that_closes_the_connection_is_unreachable(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            connection, _ = listener.accept()
            connection.recv(65536)  # all of it: closing then is an end, no reset
            connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        cluster = Cluster.connect(ClusterTarget(kubeconfig_of(listener.getsockname()[1], tmp_path)))
        with pytest.raises(Unreachable, match=r"the API server https://127\.0\.0\.1:[0-9]+ does not respond: .*EOF"):
            cluster.get("Pod", "default", "x")


def test_the_kubeconfig_is_found_like_kubectl_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/a:/b")
    assert kubeconfig(ClusterTarget()) == "/a:/b"
    assert kubeconfig(ClusterTarget("/c")) == "/c"
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setenv("HOME", "/home/me")
    assert kubeconfig(ClusterTarget()) == "/home/me/.kube/config"


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers every request with the server's ``content``."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for chunk in self.server.content():  # type: ignore[attr-defined]
                self.wfile.write(chunk)

    def date_time_string(self, timestamp: float | None = None) -> str:
        return "yesterday"

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[tuple[Cluster, http.server.ThreadingHTTPServer]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = kubeconfig_of(server.server_port, tmp_path)
    Path(config).write_text(Path(config).read_text().replace("https://", "http://"))
    yield Cluster.connect(ClusterTarget(config)), server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>login</html>", b"[]", b"null", b"{}", b'{"metadata": 3}', b"[" * 100_000, b"\xff\xfe", b"1" * 9000],
    ids=["empty", "html", "list", "null", "no metadata", "metadata", "deep", "bytes", "number"],
)
def test_an_answer_that_is_no_object_is_an_error_that_names_the_server(answering: Any, content: bytes) -> None:
    cluster, server = answering
    server.content = lambda: [content]
    for request in (lambda: cluster.get("Pod", "default", "x"), lambda: cluster.list("Pod", "default")):
        with pytest.raises(RunError, match=r"http://127\.0\.0\.1:[0-9]+ returned .*; is it a Kubernetes API server"):
            request()


def test_an_endless_answer_is_cut(answering: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_ANSWER_BYTES", 2**22)
    cluster, server = answering
    server.content = lambda: itertools.repeat(bytes(2**16))
    with pytest.raises(RunError, match="returned more than 4194304 bytes"):
        cluster.get("Pod", "default", "x")


def test_a_clock_that_cannot_be_read_is_an_error(answering: Any) -> None:
    cluster, server = answering
    server.content = lambda: [b"{}"]
    with pytest.raises(RunError, match="returned no valid Date header"):
        cluster.time_s()


def test_an_api_server_on_this_machine_is_reached_without_the_proxy(
    answering: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, server = answering
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    server.content = lambda: [b'{"metadata": {"name": "x", "labels": null}}']
    pod = Cluster.connect(ClusterTarget(str(tmp_path / "config"))).get("Pod", "default", "x")
    assert pod == {"metadata": {"name": "x", "labels": {}, "annotations": {}}}


def test_without_a_home_directory_the_kubeconfig_is_merely_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KUBECONFIG", "HOME", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # a user id without a passwd entry
    with pytest.raises(ValueError, match="there is no kubeconfig; set KUBECONFIG"):
        Cluster.connect(ClusterTarget())
