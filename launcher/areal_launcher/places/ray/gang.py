"""The resources of a run: one placement group for the first servers and the trainer, one more for each later server."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from areal_launcher.errors import RunError
from areal_launcher.places.ray import node_code
from areal_launcher.places.ray.agent import Agent
from areal_launcher.places.ray.bundles import Bundle, shortage, unplaced
from areal_launcher.places.ray.connection import alive_nodes

SCHEDULING_S = 60.0  # that Ray may take to place a group for which there is room
RELEASE_S = 5.0  # after which resources count as held by others, and not by a run that has just ended
POLL_S = 1.0
CALLS_AT_ONCE = 8  # per agent


@dataclass(frozen=True)
class Slot:
    """Where a process runs: a bundle of a placement group. Ray moves it if its node is lost."""

    bundle: Bundle
    group: Any
    index: int

    @property
    def node(self) -> str:
        """Ray's id of the node on which the bundle was placed."""
        return str(placement_group_table(self.group)["bundles_to_node_id"][self.index])

    def new_agent(self) -> Any:
        """An actor in the bundle, which holds all its resources. It waits while the bundle has no node."""
        resources = dict(self.bundle.resources)
        return (
            ray.remote(Agent)
            .options(
                num_cpus=resources.pop("CPU"),
                num_gpus=resources.pop("GPU", 0),
                memory=resources.pop("memory", None),
                resources=resources or None,
                max_restarts=0,
                max_concurrency=CALLS_AT_ONCE,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self.group, self.index),
            )
            .remote()
        )

    def code(self) -> Any:
        """A reference to the result of ``node_code.describe`` on the bundle's node."""
        ray.cloudpickle.register_pickle_by_value(node_code)
        return (
            ray.remote(node_code.describe)
            .options(num_cpus=0, scheduling_strategy=PlacementGroupSchedulingStrategy(self.group, self.index))
            .remote()
        )


class Gang:
    """All bundles or none. Released with ``release``, and by Ray when the driver ends."""

    def __init__(self, bundles: Sequence[Bundle], *, wait_s: float | None, on_wait: Callable[[str], None]) -> None:
        """Reserve the bundles. ``wait_s``: how long to wait for room, None not at all. Meanwhile ``on_wait`` is
        called about every second, and may raise.

        Raises ``RunError`` with what is missing.
        """
        self._groups: list[Any] = []
        self.slots: dict[str, Slot] = {}
        group = self._add(bundles)
        try:
            self._wait(group, bundles, wait_s, on_wait)
        except BaseException:
            self.release()
            raise

    def add(self, bundle: Bundle) -> None:
        """Ask for one more bundle, without waiting for it."""
        self._add([bundle])

    def drop(self, name: str) -> None:
        """Give back the bundle of a process that was added; one of the first group stays reserved."""
        slot = self.slots[name]
        if slot.group is not self._groups[0]:
            remove_placement_group(slot.group)
            self._groups.remove(slot.group)
            del self.slots[name]

    def release(self) -> None:
        """Give everything back."""
        for group in self._groups:
            remove_placement_group(group)
        self._groups = []

    def _add(self, bundles: Sequence[Bundle]) -> Any:
        group = placement_group(
            [dict(bundle.resources) for bundle in bundles],
            strategy="PACK",
            bundle_label_selector=[dict(bundle.labels) for bundle in bundles],
        )
        self._groups.append(group)
        self.slots |= {bundle.name: Slot(bundle, group, index) for index, bundle in enumerate(bundles)}
        return group

    def _wait(
        self, group: Any, bundles: Sequence[Bundle], wait_s: float | None, on_wait: Callable[[str], None]
    ) -> None:
        started, ready = time.monotonic(), group.ready()
        if is_done(ready, RELEASE_S):
            return
        while not unplaced(bundles, alive_nodes(), empty=False) and time.monotonic() < started + SCHEDULING_S:
            if is_done(ready, POLL_S):
                return
        if is_done(ready, POLL_S):  # reserving the bundles has made them look taken
            return
        missing = shortage(bundles, alive_nodes())
        if wait_s is None:
            raise RunError(
                f"the Ray cluster has no room for the run: {missing}. Lower servers.replicas or the sizes, free "
                "resources, or set runPolicy.preRunningDeadlineSeconds to wait for them or for an autoscaler"
            )
        deadline = started + wait_s
        while time.monotonic() < deadline:
            on_wait(f"waiting up to {wait_s:g} s (runPolicy.preRunningDeadlineSeconds) for resources: {missing}")
            if is_done(ready, min(POLL_S, max(0.0, deadline - time.monotonic()))):
                return
        raise RunError(
            "the Ray cluster had no room for the run within runPolicy.preRunningDeadlineSeconds = "
            f"{wait_s:g}: {shortage(bundles, alive_nodes())}"
        )


def is_done(reference: Any, timeout_s: float) -> bool:
    """Whether a call has returned or failed, after at most ``timeout_s``."""
    return bool(ray.wait([reference], timeout=timeout_s)[0])
