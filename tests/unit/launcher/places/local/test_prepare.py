"""Threads and ports of a run on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_launcher.places.local.prepare import check_ports, compute_threads
from support.local_runs import load


def test_cores_are_shared_by_concurrent_processes(experiment_path: Path) -> None:
    two = ("servers.replicas=2", "trainer.processesPerNode=2")
    synchronous = load(experiment_path, *two, "config.rollout.max_head_offpolicyness=0").spec
    asynchronous = load(experiment_path, *two, "config.rollout.max_head_offpolicyness=2").spec
    assert compute_threads(asynchronous, 8) == 2
    assert compute_threads(synchronous, 8) == 4
    assert compute_threads(asynchronous, 2) == 1


def test_ports_past_the_last_one_are_refused() -> None:
    check_ports(None, 100)
    check_ports(65535, 1)
    with pytest.raises(ValueError, match=r"needs ports up to 65536, more than 65535; choose at most 65534"):
        check_ports(65535, 2)
