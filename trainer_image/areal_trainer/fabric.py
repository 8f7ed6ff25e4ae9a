"""Which network NCCL will use between nodes: InfiniBand, RoCE or TCP, read before the first collective.

NCCL falls back to TCP without a word when a container lacks the devices, the library or locked memory. This module
looks at the same places, so that a log says what to expect and why.
"""

from __future__ import annotations

import ctypes.util
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Transport = Literal["InfiniBand", "RoCE", "TCP"]
MIN_LOCKED_BYTES = 2**30  # NCCL registers buffers of this order
IPC_LOCK_BIT = 14  # CAP_IPC_LOCK in capability(7)


@dataclass(frozen=True)
class Fabric:
    """The network between nodes. ``adapters``: active ports as NCCL names them, such as mlx5_0:1."""

    transport: Transport
    adapters: tuple[str, ...]
    reason: str
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        adapters = f" on {', '.join(self.adapters)}" if self.adapters else ""
        return "; ".join((f"NCCL will use {self.transport}{adapters} between nodes: {self.reason}", *self.warnings))


@dataclass(frozen=True)
class Host:
    """What this process can see and use."""

    root: Path  # of the file system that holds sys, dev and proc
    has_libibverbs: bool
    locked_bytes: int | None  # RLIMIT_MEMLOCK; None is unlimited

    @classmethod
    def current(cls) -> Host:
        """This process."""
        soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        has_libibverbs = ctypes.util.find_library("ibverbs") is not None
        return cls(Path("/"), has_libibverbs, None if soft == resource.RLIM_INFINITY else soft)


def detect(host: Host, environ: Mapping[str, str]) -> Fabric:
    """The transport that NCCL will choose on ``host`` under the NCCL variables of ``environ``."""
    if environ.get("NCCL_IB_DISABLE", "0") not in ("", "0"):
        return Fabric("TCP", (), f"NCCL_IB_DISABLE is {environ['NCCL_IB_DISABLE']}")
    if environ.get("NCCL_NET", "").lower() == "socket":
        return Fabric("TCP", (), "NCCL_NET is Socket")
    found = active_ports(host.root)
    if not found:
        return Fabric("TCP", (), "/sys/class/infiniband has no active port")
    ports = {name: layer for name, layer in found.items() if selected(name, environ.get("NCCL_IB_HCA", ""))}
    if not ports:
        return Fabric("TCP", (), f"NCCL_IB_HCA={environ['NCCL_IB_HCA']} selects none of {', '.join(found)}")
    if not list(host.root.glob("dev/infiniband/uverbs*")):
        text = "the adapters are visible, but /dev/infiniband is not in this container: request the RDMA resource"
        return Fabric("TCP", (), text)
    if not host.has_libibverbs:
        return Fabric(
            "TCP", (), "libibverbs is not installed; in Debian the packages libibverbs1 and ibverbs-providers"
        )
    layers = set(ports.values())
    transport: Transport = "InfiniBand" if "InfiniBand" in layers else "RoCE"
    warnings = [f"ports differ: {', '.join(f'{n} {layer}' for n, layer in ports.items())}"] if len(layers) > 1 else []
    return Fabric(transport, tuple(ports), "active ports with access", (*warnings, *locked_memory_warnings(host)))


def active_ports(root: Path) -> dict[str, str]:
    """Link layer, InfiniBand or Ethernet (RoCE), of each active port, by device:port. A file may be missing."""
    found: dict[str, str] = {}
    for port in sorted(root.glob("sys/class/infiniband/*/ports/*")):
        if read(port / "state").endswith("ACTIVE"):  # "4: ACTIVE"
            found[f"{port.parent.parent.name}:{port.name}"] = read(port / "link_layer") or "InfiniBand"
    return found


def selected(port: str, pattern: str) -> bool:
    """Whether ``pattern``, as in NCCL_IB_HCA, selects device:port: prefixes, with = exact names, with ^ all others."""
    inverted, pattern = pattern.startswith("^"), pattern.removeprefix("^")
    exact, pattern = pattern.startswith("="), pattern.removeprefix("=")
    names = [name for name in pattern.split(",") if name]
    if not names:
        return True
    device, _, number = port.partition(":")
    return any(_matches(device, number, name, exact=exact) for name in names) is not inverted


def _matches(device: str, number: str, name: str, *, exact: bool) -> bool:
    wanted, _, wanted_number = name.partition(":")
    same = device == wanted if exact else device.startswith(wanted)
    return same and wanted_number in ("", number)


def locked_memory_warnings(host: Host) -> list[str]:
    """RDMA needs locked memory: by the limit, or by an effective IPC_LOCK, which only processes of root get."""
    if host.locked_bytes is None or host.locked_bytes >= MIN_LOCKED_BYTES or has_ipc_lock(host.root):
        return []
    return [
        f"only {host.locked_bytes // 1024} KiB of memory can be locked, so registering buffers will fail: raise the "
        "container runtime's LimitMEMLOCK, or run as root with fabric.ipcLock"
    ]


def has_ipc_lock(root: Path) -> bool:
    """Whether IPC_LOCK is effective in this process."""
    for line in read(root / "proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> IPC_LOCK_BIT & 1)
    return False


def read(file: Path) -> str:
    """A small text file without surrounding white space; empty if it cannot be read."""
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
