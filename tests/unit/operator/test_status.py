"""Conditions and counters of the status."""

from __future__ import annotations

from typing import Any

import pytest

from areal_api import resource_names
from areal_api.bounds import MAX_STATUS_TEXT
from areal_api.resource_names import SERVER, TRAINER
from areal_api.status import ExperimentStatus
from areal_operator import status as report
from areal_operator.diagnosis import Reason
from areal_operator.observed import Observed
from areal_operator.status import PROGRESS_FIELDS, ConditionUpdate, find, status_to_write, updated_conditions
from support.operator_objects import (
    NOW,
    claim,
    continued,
    decide,
    experiment,
    job,
    later,
    pod,
    server_set,
    state,
    terminating,
)


def observed(*objects: dict[str, Any]) -> Observed:
    kinds: dict[str, list[dict[str, Any]]] = {}
    for obj in objects:
        kinds.setdefault(obj["kind"], []).append(obj)
    return Observed(kinds)


def test_the_transition_time_changes_only_with_the_status() -> None:
    first = updated_conditions([], [ConditionUpdate("T", "False", Reason("A", "a"))], now=NOW, generation=1)
    again = updated_conditions(first, [ConditionUpdate("T", "False", Reason("B", "b"))], now=later(60), generation=2)
    (condition,) = again
    assert (condition.reason, condition.message, condition.observed_generation) == ("B", "b", 2)
    assert condition.last_transition_time == first[0].last_transition_time
    (changed,) = updated_conditions(again, [ConditionUpdate("T", "True", Reason("C", ""))], now=later(60), generation=2)
    assert changed.last_transition_time == "2026-01-31T12:01:00Z"


def test_conditions_without_an_update_stay() -> None:
    before = updated_conditions([], [ConditionUpdate("Other", "True", Reason("X", ""))], now=NOW, generation=1)
    after = updated_conditions(before, [ConditionUpdate("T", "True", Reason("Y", ""))], now=later(1), generation=2)
    assert find(after, "Other") == before[0]
    assert find(after, "Missing") is None


@pytest.mark.parametrize(
    ("pods", "replicas", "addressed", "expected"),
    [
        ([pod(SERVER, 0), pod(SERVER, 1)], 2, 2, ("True", "Ready")),
        ([pod(SERVER, 0)], 2, 2, ("False", "Starting")),
        ([pod(SERVER, 0), pod(SERVER, 1, conditions=[])], 2, 2, ("False", "Starting")),
        ([pod(SERVER, 0), pod(SERVER, 1)], 1, 2, ("True", "Draining")),
        ([terminating(pod(SERVER, 0)), pod(SERVER, 1, conditions=[])], 1, 2, ("False", "Draining")),
        ([pod(SERVER, 0)], 3, 1, ("False", "BeyondMaxReplicas")),
    ],
)
def test_servers_are_ready_once_all_desired_ones_are(
    pods: list[Any], replicas: int, addressed: int, expected: tuple[str, str]
) -> None:
    spec = experiment(servers={"replicas": replicas, "maxReplicas": 4})
    update = report.servers(spec, observed(*pods, server_set()), addressed=addressed)
    assert (update.status, update.reason.code) == expected


def test_draining_servers_are_not_counted_as_ready() -> None:
    counted = report.servers_status(experiment(), observed(pod(SERVER, 0), pod(SERVER, 1)), wanted=True)
    assert (counted.ready, counted.desired, counted.summary) == (1, 1, "1/1")
    assert counted.pools is None
    assert counted.selector == resource_names.selector(resource_names.component_labels("case", SERVER))


POOLS = [{"name": "big", "replicas": 2}, {"name": "wide", "tensorParallel": 2, "nodesPerServer": 2}]


def in_pool(name: str, index: int, **status: Any) -> dict[str, Any]:
    one = pod(SERVER, index, **status)
    labels = {**one["metadata"]["labels"], resource_names.POOL: name}
    return {**one, "metadata": {**one["metadata"], "name": f"case-pool-{name}-{index}", "labels": labels}}


def test_servers_of_each_pool_are_counted() -> None:
    spec = experiment(servers={"replicas": 1, "pools": POOLS})
    pods = [pod(SERVER, 0), in_pool("big", 0), in_pool("big", 1, conditions=[]), in_pool("wide", 0)]
    counted = report.servers_status(spec, observed(*pods), wanted=True)
    assert (counted.ready, counted.desired) == (2, 4)
    assert [(one.name, one.ready, one.desired) for one in counted.pools or ()] == [("big", 1, 2), ("wide", 0, 1)]
    labels = resource_names.selector(resource_names.component_labels("case", SERVER))
    assert counted.selector == f"{labels},!areal.dev/pool"


def test_servers_are_ready_once_those_of_every_pool_are() -> None:
    spec = experiment(servers={"replicas": 1, "pools": POOLS})
    pods = [pod(SERVER, 0), in_pool("big", 0), in_pool("big", 1), in_pool("wide", 0)]
    update = report.servers(spec, observed(*pods, server_set()), addressed=1)
    assert (update.status, update.reason.code) == ("False", "Starting")
    assert update.reason.message == (
        "1 of 1 servers are ready; pool big: 2 of 2 servers are ready; "
        "pool wide: 0 of 1 servers are ready, others are starting"
    )
    update = report.servers(spec, observed(*pods, in_pool("wide", 1), server_set()), addressed=1)
    assert (update.status, update.reason.code) == ("True", "Ready")


def test_the_trainer_runs_once_all_pods_of_its_job_do() -> None:
    spec = experiment(trainer={"nodes": 1})
    both = [pod(TRAINER, 0), pod(TRAINER, 1)]
    assert report.trainer(spec, observed(job(1, nodes=2), *both), attempt=1).status == "True"
    assert report.trainer(spec, observed(job(1, nodes=2), both[0]), attempt=1).status == "False"
    assert report.trainer(spec, observed(job(1, nodes=1), terminating(both[0])), attempt=1).status == "False"


def test_the_operator_never_writes_what_trainers_report() -> None:
    status = ExperimentStatus.model_validate(
        {"step": 3, "totalSteps": 9, "progress": "3/9", "version": 3, "reward": 0.5, "evalReward": 0.5, "staleness": 1}
        | {"tokensPerSecond": 7, "serversCurrent": 1, "serversBehind": 0, "phase": "Running"}
        | {
            "rolloutWait": 0.5,
            "serversIdle": 0.5,
            "cacheHitRate": 0.5,
            "agentSessions": 3,
            "agentSessionsLost": 1,
            "agentErrors": 0,
        }
    )
    assert not set(PROGRESS_FIELDS) & set(status_to_write(status))
    assert status_to_write(status)["phase"] == "Running"


def test_every_text_of_the_status_is_short_enough_for_the_api_server() -> None:
    """A suspension waits for 1,024 pods; the condition and the message name them."""
    running = continued(state(), decide(state()))
    suspended = state(running.status, runPolicy__suspend=True)
    pods = [pod(SERVER, index) for index in range(1024)]
    status = status_to_write(decide(suspended, *pods, server_set(), claim(), job(1)).status)
    texts = [str(value) for value in status.values() if isinstance(value, str)]
    conditions: Any = status["conditions"]
    texts += [str(value) for condition in conditions for value in condition.values()]
    assert max(map(len, texts)) == MAX_STATUS_TEXT


def test_a_server_on_several_nodes_is_ready_once_all_of_its_pods_are() -> None:
    pods = [pod(SERVER, index) for index in (0, 1, 2)]
    waiting = pod(SERVER, 3, conditions=[])
    assert report.ready_servers([*pods, waiting], nodes=2) == 1
    assert report.ready_servers([*pods, pod(SERVER, 3)], nodes=2) == 2
    spec = experiment(servers__replicas=2, servers__tensorParallel=2, servers__nodesPerServer=2)
    observed = Observed({"Pod": [*pods, waiting]})
    assert report.servers(spec, observed, addressed=2).reason.message.startswith("1 of 2 servers are ready")
    assert report.servers_status(spec, observed, wanted=True).summary == "1/2"
    ready = Observed({"Pod": [pod(SERVER, index) for index in range(6)]})
    update = report.servers(spec, ready, addressed=2)
    assert (update.reason.code, update.reason.message) == ("Draining", "1 servers are draining; 3 of 2 are ready")
