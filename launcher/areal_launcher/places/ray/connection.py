"""Connects `grpo` to a running Ray cluster, as a driver on one of its nodes."""

from __future__ import annotations

import logging
import os
import socket

import ray

from areal_launcher.places.ray.bundles import Node

ADDRESS = "RAY_ADDRESS"  # set by `ray job submit` too
AUTO = "auto"  # the cluster that runs on this machine
CONNECT_TIMEOUT_S = 10.0
START = "start one with ray start --head, or give the address of a running one with --address or RAY_ADDRESS"


def connect(address: str | None) -> str:
    """Connect to the cluster at ``address`` (default: RAY_ADDRESS, else the one on this machine); its address.

    Raises ``ValueError`` with the fix.
    """
    source, wanted = ("--address", address) if address else (ADDRESS, os.environ.get(ADDRESS) or AUTO)
    if "://" in wanted:
        raise ValueError(
            f"{source} is {wanted}: grpo connects as a driver, not through Ray Client; give host:port and run grpo on "
            "a node of the cluster, or submit it: ray job submit -- grpo run --on ray …"
        )
    if wanted != AUTO:
        check_reachable(source, wanted)
    try:
        ray.init(wanted, log_to_driver=False, logging_level=logging.CRITICAL)
    except Exception as error:  # Ray raises exceptions of many unrelated types
        raise ValueError(explain(source, wanted, error)) from error
    return str(ray.get_runtime_context().gcs_address)


def check_reachable(source: str, address: str) -> None:
    """Raise ``ValueError`` unless something listens at ``address``; Ray itself would retry for long."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port[:6]) < 2**16:
        raise ValueError(f"{source} is {address}; write host:port, for example 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"{source}: no Ray cluster at {address} ({reason}); {START}") from error


def explain(source: str, address: str, error: Exception) -> str:
    """What to do about an error of ``ray.init``."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "ersion mismatch" in str(error):
        return (
            f"{source}: the Ray cluster at {address} has another version of Ray or Python than this environment "
            f"({'; '.join(lines[1:5])}); install the cluster's versions here, or start it with this environment"
        )
    if address == AUTO:
        return f"no Ray cluster runs on this machine; {START}"
    if "No node info found" in str(error):
        return (
            f"{source}: this machine is not a node of the Ray cluster at {address}; run grpo on one of its nodes, join "
            f"it with ray start --address={address}, or submit the command: ray job submit -- grpo run --on ray …"
        )
    return f"{source}: cannot connect to the Ray cluster at {address}: {lines[0] if lines else type(error).__name__}"


def alive_nodes() -> list[Node]:
    """The nodes of the connected cluster, with what is free on each."""
    free = ray._private.state.available_resources_per_node()
    return [
        Node(
            name=str(node["NodeManagerAddress"]),
            total=dict(node["Resources"]),
            free=dict(free.get(node["NodeID"], {})),
            labels={str(key): str(value) for key, value in (node.get("Labels") or {}).items()},
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
