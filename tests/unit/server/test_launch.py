"""Checks before a server starts: machine, model, API key."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from areal_server import launch
from areal_server.node_group import Member


def test_missing_gpu_is_reported_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"servers\.device: 'cuda'.*has 0; set servers\.device: cpu"):
        launch.check_machine("cuda", 1, "127.0.0.1", 0)


def test_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port {port}: .*in use"):
            launch.check_machine("cpu", 1, "127.0.0.1", port)


def test_path_without_a_model_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        launch.check_model(str(tmp_path))
    for missing in (str(tmp_path / "no"), "./no/model", "examples/no/model"):
        with pytest.raises(ValueError, match="no such directory"):
            launch.check_model(missing)
    (tmp_path / "config.json").write_text("{}")
    launch.check_model(str(tmp_path))
    launch.check_model("Qwen/Qwen2-1.5B-Instruct")


def test_empty_key_file_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("secret\n")
    assert launch.read_key(str(file)) == "secret"
    file.write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        launch.read_key(str(file))


@pytest.mark.parametrize(
    ("host", "pod_ip", "listens_on"),
    [
        ("0.0.0.0", "fd00::7", "::"),
        ("0.0.0.0", "10.0.0.7", "0.0.0.0"),
        ("0.0.0.0", None, "0.0.0.0"),
        ("127.0.0.1", "fd00::7", "127.0.0.1"),
    ],
)
def test_a_pod_with_an_ipv6_address_listens_on_ipv6(host: str, pod_ip: str | None, listens_on: str) -> None:
    assert launch.listening_host(host, pod_ip) == listens_on


def test_an_ipv6_port_in_use_is_named() -> None:
    try:
        taken = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port {port}: .*in use"):
            launch.check_machine("cpu", 1, "::1", port)


@pytest.mark.parametrize(
    ("words", "seed"),
    [("--index 3", 10), ("--index 3 --nodes 2 --leaders s-{}.x", 8), ("--index 3 --seed-offset 1024", 1034)],
)
def test_every_server_of_a_run_has_a_seed(words: str, seed: int) -> None:
    options = launch.parse(["--config", "c", "--device", "cpu", "--port", "1", *words.split()])
    assert launch.seed_of(options, 7) == seed


@pytest.mark.parametrize(("index", "rank", "leader"), [(0, 0, "s-0.x"), (3, 1, "s-2.x"), (4, 0, "s-4.x")])
def test_the_index_of_a_node_tells_its_server_and_its_rank(index: int, rank: int, leader: str) -> None:
    arguments = ["--config", "c", "--device", "cpu", "--port", "1", "--index", str(index)]
    more = ["--nodes", "2", "--leaders", "s-{}.x", "--group-port", "30100"]
    assert launch.member_of(launch.parse(arguments + more)) == Member(2, rank, leader, 30100)
    assert launch.member_of(launch.parse(arguments)) is None
