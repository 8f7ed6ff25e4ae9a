"""When a run has its resources, waits for them, or is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from areal_launcher.errors import RunError
from areal_launcher.places.ray import gang
from areal_launcher.places.ray.bundles import Bundle, Node
from areal_launcher.places.ray.gang import Gang

BUNDLES = [Bundle("server-0", {"CPU": 2.0}), Bundle("trainer", {"CPU": 2.0})]


class Cluster:
    """A cluster that places a group after ``ready_s``, with ``free`` CPUs. Time passes only while it is asked."""

    def __init__(self, *, ready_s: float, free: float) -> None:
        self.ready_s, self.free, self.now = ready_s, free, 0.0
        self.released = 0

    def is_done(self, reference: object, timeout_s: float) -> bool:
        self.now = min(self.ready_s, self.now + timeout_s) if self.now < self.ready_s else self.now
        return self.now >= self.ready_s

    def nodes(self) -> list[Node]:
        return [Node("a", {"CPU": 4.0}, {"CPU": self.free})]

    def release(self, group: object) -> None:
        self.released += 1


@pytest.fixture
def cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster(**request.param)
    monkeypatch.setattr(gang, "placement_group", lambda *_, **__: SimpleNamespace(ready=lambda: None))
    monkeypatch.setattr(gang, "remove_placement_group", made.release)
    monkeypatch.setattr(gang, "is_done", made.is_done)
    monkeypatch.setattr(gang, "alive_nodes", made.nodes)
    monkeypatch.setattr(gang, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


@pytest.mark.parametrize("cluster", [{"ready_s": 40.0, "free": 4.0}], indirect=True)
def test_a_group_that_has_room_is_waited_for(cluster: Cluster) -> None:
    Gang(BUNDLES, wait_s=None, on_wait=pytest.fail)
    assert cluster.released == 0


@pytest.mark.parametrize("cluster", [{"ready_s": 6.0, "free": 0.0}], indirect=True)
def test_a_group_whose_bundles_are_just_reserved_is_not_refused(cluster: Cluster) -> None:
    Gang(BUNDLES, wait_s=None, on_wait=pytest.fail)


@pytest.mark.parametrize("cluster", [{"ready_s": 1e9, "free": 2.0}], indirect=True)
def test_a_group_without_room_is_refused_at_once_and_released(cluster: Cluster) -> None:
    with pytest.raises(RunError, match=r"no room for the run: missing 2 CPUs: trainer needs 2 CPUs on one node"):
        Gang(BUNDLES, wait_s=None, on_wait=pytest.fail)
    assert cluster.now < 10
    assert cluster.released == 1


@pytest.mark.parametrize("cluster", [{"ready_s": 100.0, "free": 0.0}], indirect=True)
def test_a_group_waits_for_room_and_says_so(cluster: Cluster) -> None:
    said: list[str] = []
    Gang(BUNDLES, wait_s=300, on_wait=said.append)
    assert said[0].startswith("waiting up to 300 s (runPolicy.preRunningDeadlineSeconds) for resources: missing 4 CPUs")
