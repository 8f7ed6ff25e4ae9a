"""The cluster of ``make cluster`` and a namespace in it for each test."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from hack.cluster.kind_cluster import KindCluster, NoCluster
from hack.testbed.helm_release import Release


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> KindCluster:
    """The cluster. Skips the test if there is none; fails it if the cluster does not respond."""
    try:
        cluster = KindCluster.find(tmp_path_factory.mktemp("cluster"))
    except NoCluster as missing:
        pytest.skip(str(missing))
    cluster.wait("condition=Ready", "nodes", "--all", timeout_s=60)
    return cluster


@pytest.fixture(scope="module")
def release(cluster: KindCluster) -> Iterator[Release]:
    """The chart without its own experiment. Installed once per module, because one of them uninstalls it."""
    release = Release(cluster, cluster.image_tag)
    release.install("experiment.enabled=false")
    yield release
    release.uninstall()


@pytest.fixture
def namespace(cluster: KindCluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty namespace that enforces the Pod Security level "restricted"."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:50].strip("-")
    cluster.kubectl("delete", "namespace", name, "--ignore-not-found")  # left by a killed run
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
