"""One Ray cluster of three nodes for all tests of this folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from hack.testbed.ray_cluster import RayCluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayCluster]:
    """Three nodes of three CPUs; all but the first declare two GPUs that do not exist."""
    with contextlib.ExitStack() as stack:
        try:
            cluster = stack.enter_context(RayCluster(cpus=3, gpus=2))
        except TimeoutError as error:
            pytest.skip(f"this machine is too busy for a Ray cluster: {error}")
        yield cluster
