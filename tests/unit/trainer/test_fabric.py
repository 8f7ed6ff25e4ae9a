"""What the trainer says about the network, on made-up machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_trainer.fabric import Fabric, Host, active_ports, detect, selected

IPC_LOCK_ONLY = "0000000000004000"


class Machine:
    """A file system with network adapters."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.device_files(present=True)
        self.capabilities("0000000000000000")

    def port(self, name: str, *, layer: str = "InfiniBand", state: str = "4: ACTIVE") -> None:
        device, number = name.split(":")
        folder = self.root / "sys/class/infiniband" / device / "ports" / number
        folder.mkdir(parents=True)
        (folder / "state").write_text(f"{state}\n")
        (folder / "link_layer").write_text(f"{layer}\n")

    def device_files(self, *, present: bool) -> None:
        folder = self.root / "dev/infiniband"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "uverbs0").touch() if present else (folder / "uverbs0").unlink()

    def capabilities(self, effective: str) -> None:
        (self.root / "proc/self").mkdir(parents=True, exist_ok=True)
        (self.root / "proc/self/status").write_text(f"Name:\tpython\nCapEff:\t{effective}\n")

    def detect(self, *, libibverbs: bool = True, locked: int | None = None, **environ: str) -> Fabric:
        return detect(Host(self.root, libibverbs, locked), environ)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_adapters_it_is_tcp(machine: Machine) -> None:
    found = machine.detect()
    assert (found.transport, found.adapters) == ("TCP", ())
    assert "no active port" in str(found)


@pytest.mark.parametrize(("layer", "transport"), [("InfiniBand", "InfiniBand"), ("Ethernet", "RoCE")])
def test_the_link_layer_of_active_ports_decides(machine: Machine, layer: str, transport: str) -> None:
    machine.port("mlx5_0:1", layer=layer)
    machine.port("mlx5_1:1", layer=layer, state="1: DOWN")
    found = machine.detect()
    assert (found.transport, found.adapters, found.warnings) == (transport, ("mlx5_0:1",), ())
    assert str(found) == f"NCCL will use {transport} on mlx5_0:1 between nodes: active ports with access"


def test_ports_of_two_kinds_are_a_warning(machine: Machine) -> None:
    machine.port("mlx5_0:1")
    machine.port("mlx5_1:1", layer="Ethernet")
    assert "mlx5_1:1 Ethernet" in machine.detect().warnings[0]


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"NCCL_IB_DISABLE": "1"}, "NCCL_IB_DISABLE is 1"),
        ({"NCCL_NET": "Socket"}, "NCCL_NET is Socket"),
        ({"NCCL_IB_HCA": "mlx4"}, "NCCL_IB_HCA=mlx4 selects none of mlx5_0:1"),
    ],
)
def test_variables_can_forbid_it(machine: Machine, environ: dict[str, str], reason: str) -> None:
    machine.port("mlx5_0:1")
    found = machine.detect(**environ)
    assert found.transport == "TCP"
    assert reason in found.reason
    assert machine.detect(NCCL_IB_DISABLE="0").transport == "InfiniBand"


def test_adapters_without_device_files_or_library_are_not_used(machine: Machine) -> None:
    machine.port("mlx5_0:1")
    assert "libibverbs is not installed" in machine.detect(libibverbs=False).reason
    machine.device_files(present=False)
    found = machine.detect()
    assert found.transport == "TCP"
    assert "request the RDMA resource" in found.reason


def test_too_little_locked_memory_is_a_warning_unless_ipc_lock_is_effective(machine: Machine) -> None:
    machine.port("mlx5_0:1")
    assert "only 8192 KiB of memory can be locked" in machine.detect(locked=8 * 2**20).warnings[0]
    machine.capabilities(IPC_LOCK_ONLY)
    assert machine.detect(locked=8 * 2**20).warnings == ()


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("", True),
        ("mlx5", True),
        ("mlx5_1", True),
        ("mlx5_1:1", True),
        ("mlx5_1:2", False),
        ("=mlx5_1", False),
        ("=mlx5_10", True),
        ("^mlx5_1", False),
        ("^=mlx5_1", True),
        ("mlx4,mlx5", True),
        ("^mlx4,mlx5", False),
    ],
)
def test_adapters_are_selected_as_nccl_does(pattern: str, chosen: bool) -> None:
    assert selected("mlx5_10:1", pattern) is chosen


def test_a_port_whose_files_vanish_is_inactive(machine: Machine) -> None:
    machine.port("mlx5_0:1")
    (machine.root / "sys/class/infiniband/mlx5_0/ports/1/state").unlink()
    assert active_ports(machine.root) == {}


def test_this_process_can_be_asked() -> None:
    assert str(detect(Host.current(), {"NCCL_IB_DISABLE": "1"})).startswith("NCCL will use TCP")
