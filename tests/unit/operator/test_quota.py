"""Whether quotas can hold a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from areal_operator.manifests.base import Build
from areal_operator.observed import Object
from areal_operator.quota import demand, within_quota
from support.operator_objects import SETTINGS, UID, condition, decide, experiment, state

CPUS = {"requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}


def build(**changes: Any) -> Build:
    return Build(experiment(**changes), "ns", UID, 1, "key", "key", SETTINGS)


def quota(name: str = "team", **hard: str) -> Object:
    return {"kind": "ResourceQuota", "metadata": {"name": name}, "spec": {"hard": hard}}


def gpus(amount: str) -> Object:
    return {**quota(), "spec": {"hard": {"requests.nvidia.com/gpu": amount}}}


def test_a_run_needs_the_sum_of_its_pods() -> None:
    needed = demand(build(servers__replicas=3, servers__tensorParallel=2, trainer__processesPerNode=4))
    assert (needed["requests.nvidia.com/gpu"], needed["pods"]) == (10, 4)
    assert needed["requests.cpu"] == needed["cpu"] == 3 * 6 + 12
    assert "limits.memory" not in needed


def test_servers_of_pools_count() -> None:
    pools = [{"name": "big", "replicas": 2, "tensorParallel": 8}]
    needed = demand(build(servers__replicas=3, servers__pools=pools))
    assert (needed["requests.nvidia.com/gpu"], needed["pods"]) == (3 + 16 + 1, 6)


def test_limits_count_as_requests_that_are_not_listed() -> None:
    listed = build(servers__device="cpu", trainer__device="cpu", servers__resources={"limits": {"cpu": "3"}})
    assert demand(listed)["requests.cpu"] == 3
    both = demand(build(servers__device="cpu", trainer__device="cpu", servers__resources=CPUS))
    assert (both["memory"], both["limits.memory"]) == (2**30, 2**31)


def test_a_sidecar_is_added_and_an_init_container_is_not() -> None:
    first = {"name": "first", "image": "i", "resources": {"requests": {"cpu": "1"}}}
    sidecar = {"name": "side", "image": "i", "restartPolicy": "Always", "resources": {"requests": {"cpu": "3"}}}
    large = {"name": "large", "image": "i", "resources": {"requests": {"cpu": "4"}}}
    base = {"servers__device": "cpu", "trainer__device": "cpu", "servers__resources": {"requests": {"cpu": "2"}}}
    assert demand(build(**base, servers__initContainers=[first]))["cpu"] == 2
    assert demand(build(**base, servers__initContainers=[first, sidecar]))["cpu"] == 5
    assert demand(build(**base, servers__initContainers=[sidecar, large]))["cpu"] == 7


def test_a_quota_that_can_never_hold_the_run_keeps_it_from_starting() -> None:
    plan = decide(state(servers__replicas=4), quotas=(gpus("4"),))
    assert (plan.status.phase, plan.objects) == ("Pending", ())
    assert plan.requeue_after_s == SETTINGS.waiting_s
    found = condition(plan.status, "WithinQuota")
    assert (found.status, found.reason) == ("False", "QuotaTooSmall")
    assert plan.status.message == found.message
    assert found.message.startswith(
        "ResourceQuota team allows 4 requests.nvidia.com/gpu, and the run needs 5; raise the"
    )


def test_a_run_that_fits_into_its_quota_starts_and_shows_it() -> None:
    plan = decide(state(), quotas=(gpus("8"),))
    assert plan.status.phase == "Starting"
    found = condition(plan.status, "WithinQuota")
    text = "ResourceQuota team allows 8 requests.nvidia.com/gpu, and the run needs 2"
    assert (found.status, found.message) == ("True", text)


def test_a_minimum_of_servers_is_what_must_fit() -> None:
    assert decide(state(servers__replicas=4, servers__minReplicas=1), quotas=(gpus("2"),)).status.phase == "Starting"


@pytest.mark.parametrize("more", [{"scopes": ["BestEffort"]}, {"scopeSelector": {"matchExpressions": []}}])
def test_a_quota_of_some_pods_alone_is_not_compared(more: Object) -> None:
    some = {**gpus("0"), "spec": {**gpus("0")["spec"], **more}}
    assert within_quota(build(), [some]) is None


def test_a_quota_of_other_things_says_nothing() -> None:
    assert within_quota(build(), [quota(secrets="1"), quota()]) is None


def test_amounts_of_memory_are_readable() -> None:
    small = replace(build(servers__resources=CPUS, trainer__resources=CPUS))
    found = within_quota(small, [quota(memory="1Gi")])
    assert found is not None
    assert "allows 1Gi memory, and the run needs 2Gi" in found.reason.message
