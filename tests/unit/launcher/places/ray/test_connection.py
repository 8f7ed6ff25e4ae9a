"""Addresses of Ray clusters that cannot be used: one clear error each."""

from __future__ import annotations

import socket
import sys

import pytest

from areal_launcher import cli
from areal_launcher.places.ray.connection import connect, explain

MISMATCH = """Version mismatch: The cluster was started with:
    Ray: 2.59.0
    Python: 3.11.7
This process on node 10.0.0.1 was started with:
    Ray: 2.60.0
    Python: 3.11.7
"""


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("ray://head:10001", "grpo connects as a driver, not through Ray Client"),
        ("head", "--address is head; write host:port"),
        ("head:port", "--address is head:port; write host:port"),
        ("head:70000", "--address is head:70000; write host:port"),
    ],
)
def test_an_address_of_another_form_is_refused(address: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        connect(address)


def test_an_address_where_nothing_listens_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{closed_port()}"
    with pytest.raises(
        ValueError, match=f"--address: no Ray cluster at {address} .*Connection refused.*ray start --head"
    ):
        connect(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match=f"RAY_ADDRESS: no Ray cluster at {address}"):
        connect(None)


def test_a_version_mismatch_names_both_versions() -> None:
    text = explain("--address", "10.0.0.1:6379", RuntimeError(MISMATCH))
    assert "the Ray cluster at 10.0.0.1:6379 has another version of Ray or Python" in text
    assert "Ray: 2.59.0" in text
    assert "Ray: 2.60.0" in text


def test_a_machine_outside_the_cluster_is_told_how_to_submit() -> None:
    error = RuntimeError("No node info found matching attributes: '' when trying to resolve node to connect to.")
    assert "ray job submit -- grpo run --on ray" in explain("--address", "10.0.0.1:6379", error)


def test_without_a_cluster_here_the_fix_is_named() -> None:
    text = explain("RAY_ADDRESS", "auto", ConnectionError("Could not find any running Ray instance."))
    assert text.startswith("no Ray cluster runs on this machine; start one with ray start --head")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for module in [name for name in sys.modules if name.startswith("areal_launcher.places.ray")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["run", "--on", "ray", "examples/tiny/experiment.yaml"]) == 2
    assert "--on ray requires ray: pip install 'areal-k8s[ray]' (here: make ray)" in capfd.readouterr().err
