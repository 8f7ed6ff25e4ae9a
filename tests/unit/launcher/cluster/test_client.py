"""Credentials and connection errors of the API server client."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest

from areal_launcher.cluster.client import Cluster, ClusterTarget, Unreachable, chosen_context, kubeconfig


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
