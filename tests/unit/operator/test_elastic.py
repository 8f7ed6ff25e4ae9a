"""``servers.autoscale`` of a run: its pods, the number of servers, and what is shown."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from areal_api import resource_names
from areal_api.resource_names import SERVER, TRAINER
from areal_operator import transitions
from areal_operator.autoscale import MEASURED, SETTLE, SUSTAINED, History, Sample
from areal_operator.clock import show
from areal_operator.elastic import Loads
from areal_operator.manifests.base import Manifest
from areal_operator.observed import ExperimentState, Object, Observed
from areal_operator.plan import Plan, plan
from areal_operator.settings import Settings
from support.operator_objects import (
    IMAGES,
    NOW,
    SETTINGS,
    claim,
    condition,
    continued,
    decide,
    job,
    later,
    pod,
    server_set,
    started,
    state,
)

ELASTIC = {"servers__replicas": 2, "servers__autoscale": {"min": 1, "max": 4}}
WAITING = Sample(0.5, 0.0)
IDLE = Sample(0.0, 0.9)
KEY = ("ns", "case")


def borrowed(index: int, **status: Any) -> Object:
    """A pod of the borrowed servers."""
    made = pod(SERVER, index, **status)
    name = f"{resource_names.borrowed_server('case', index)}-{index}"
    labels = resource_names.borrowed_labels("case", index)
    return {**made, "metadata": {**made["metadata"], "name": name, "uid": name, "labels": labels}, **status}


def scheduled(index: int) -> Object:
    made = borrowed(index)
    conditions = [*made["status"]["conditions"], {"type": "PodScheduled", "status": "True"}]
    return {**made, "status": {**made["status"], "conditions": conditions}}


def unschedulable(index: int, since: datetime = NOW) -> Object:
    found = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
    made = borrowed(index)
    return {**made, "status": {"phase": "Pending", "conditions": [{**found, "lastTransitionTime": show(since)}]}}


def borrowed_set(index: int) -> Object:
    """The StatefulSet of a borrowed server."""
    labels = resource_names.borrowed_labels("case", index)
    metadata = {"name": resource_names.borrowed_server("case", index), "uid": f"set-{index}", "labels": labels}
    return {"kind": "StatefulSet", "metadata": metadata, "status": {}}


def pods(*more: Object) -> tuple[Object, ...]:
    return (server_set(), claim(), job(1), pod(SERVER), pod(TRAINER), *more)


def running(**changes: Any) -> ExperimentState:
    begun = started(**{**ELASTIC, **changes})
    return continued(begun, decide(begun, *pods(scheduled(1))))


def decided(
    given: ExperimentState, load: History | None, *objects: Object, now: datetime, settings: Settings = SETTINGS
) -> Plan:
    by_kind: dict[str, list[Object]] = {}
    for obj in objects:
        by_kind.setdefault(obj["kind"], []).append(obj)
    observed = Observed(by_kind, load=load)
    return plan(given, observed, now, settings=settings, api_key="k", gateway_key="g")


def load_of(sample: Sample, steps: int = SUSTAINED) -> History:
    return History(NOW.timestamp(), SETTLE + steps, (sample,) * steps, 0)


def sets(made: Plan) -> dict[str, Manifest]:
    return {one["metadata"]["name"]: one for one in made.objects if one["kind"] == "StatefulSet"}


def borrowed_of(made: Plan) -> list[int]:
    """The numbers of the borrowed servers that have a StatefulSet."""
    return [one["spec"]["ordinals"]["start"] for one in sets(made).values() if "ordinals" in one["spec"]]


def test_each_borrowed_server_is_a_set_that_continues_the_numbers() -> None:
    made = sets(decide(started(**ELASTIC), *pods()))
    assert list(made) == ["case-server", "case-borrow-1"]
    guaranteed, more = (one["spec"] for one in made.values())
    assert (guaranteed["replicas"], more["replicas"], more["ordinals"]) == (1, 1, {"start": 1})
    assert more["serviceName"] == "case-server"
    labels = more["template"]["metadata"]["labels"]
    assert more["selector"]["matchLabels"].items() <= labels.items()
    assert labels[resource_names.BORROWED] == "1"
    assert resource_names.BORROWED not in guaranteed["template"]["metadata"]["labels"]


def test_the_trainer_has_the_addresses_of_all_servers_that_may_be_borrowed() -> None:
    made = decide(state(**ELASTIC))
    (job_made,) = [one for one in made.objects if one["kind"] == "Job"]
    env = {one["name"]: one.get("value") for one in job_made["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert env["AREAL_LLM_SERVER_ADDRS"].split(",") == [
        "case-server-0.case-server.ns.svc:30000",
        *(f"case-borrow-{index}-{index}.case-server.ns.svc:30000" for index in (1, 2, 3)),
    ]


def test_servers_on_several_nodes_are_borrowed_whole() -> None:
    nodes = {"servers__tensorParallel": 4, "servers__nodesPerServer": 2, **ELASTIC}
    more = sets(decide(started(**nodes), *pods()))["case-borrow-1"]["spec"]
    assert (more["replicas"], more["ordinals"]) == (2, {"start": 2})
    assert "case-borrow-1-{}.case-server.ns.svc" in more["template"]["spec"]["containers"][0]["command"]


def test_borrowed_servers_may_have_a_lower_priority_and_are_no_members_of_the_group() -> None:
    settings = Settings(images=IMAGES, gang_schedulers=(("volcano", "volcano"),))
    scale = {"min": 1, "max": 4, "priorityClassName": "low"}
    changes: dict[str, Any] = {
        "servers__replicas": 3,
        "servers__autoscale": scale,
        "servers__priorityClassName": "high",
    }
    changes |= {"servers__schedulerName": "volcano", "trainer__schedulerName": "volcano"}
    made = decide(state(**changes), settings=settings)
    guaranteed, more, _ = (one["spec"]["template"] for one in sets(made).values())
    assert (guaranteed["spec"]["priorityClassName"], more["spec"]["priorityClassName"]) == ("high", "low")
    (group,) = [one for one in made.objects if one["kind"].startswith("PodGroup")]
    assert group["spec"]["minMember"] == 2  # one server and the trainer
    assert "scheduling.k8s.io/group-name" in guaranteed["metadata"]["annotations"]
    assert "scheduling.k8s.io/group-name" not in more["metadata"].get("annotations", {})


def test_without_autoscale_there_is_one_set_and_nothing_in_the_status() -> None:
    made = decide(started(servers__replicas=2), *pods())
    assert list(sets(made)) == ["case-server"]
    assert made.status.autoscale is None


def test_the_run_starts_with_replicas_and_shows_that_number() -> None:
    status = running().status
    assert status.autoscale is not None
    assert (status.autoscale.servers, status.autoscale.reason) == (2, "")
    assert status.servers.summary == "2/2"
    assert condition(status, "ServersReady").message == "1 of 1 servers are ready, and 1 of 1 borrowed ones"


def test_a_waiting_trainer_gets_servers_with_a_reason_and_an_event() -> None:
    before = running()
    made = decided(before, load_of(WAITING), *pods(scheduled(1)), now=later(60))
    text = "4 servers instead of 2: the trainer waited for rollouts for 50.0% of a step"
    scaled = made.status.autoscale
    assert scaled is not None
    assert (scaled.servers, scaled.reason, scaled.message, scaled.since) == (4, "TrainerWaits", text, show(later(60)))
    assert borrowed_of(made) == [1, 2, 3]
    assert sets(made)["case-server"]["spec"]["replicas"] == 1
    assert transitions.between(before.status, made.status) == [transitions.Transition("Normal", "Autoscaled", text)]
    assert made.status.servers.desired == 4
    assert condition(made.status, "ServersReady").status == "True"


def test_idle_servers_are_given_back_down_to_the_guaranteed_ones() -> None:
    made = decided(running(), load_of(IDLE), *pods(borrowed_set(1), scheduled(1)), now=later(60))
    assert borrowed_of(made) == []
    assert ("StatefulSet", "case-borrow-1") in made.prune
    assert sets(made)["case-server"]["spec"]["replicas"] == 1


@pytest.mark.parametrize("lost", [[], [borrowed(1, status={"phase": "Failed", "conditions": []})]])
def test_the_loss_of_borrowed_servers_is_no_trouble(lost: list[Object]) -> None:
    made = decided(running(), History(NOW.timestamp()), *pods(*lost), now=later(60))
    assert condition(made.status, "ServersReady").status == "True"
    assert "0 of 1 borrowed" in condition(made.status, "ServersReady").message
    assert made.status.phase == "Running"


def test_a_missing_guaranteed_server_is_trouble() -> None:
    made = decided(running(), None, server_set(), claim(), job(1), pod(TRAINER), scheduled(1), now=later(60))
    assert condition(made.status, "ServersReady").status == "False"


def test_nothing_is_added_while_borrowed_servers_are_pending() -> None:
    made = decided(running(), load_of(WAITING), *pods(unschedulable(1)), now=later(60))
    assert made.status.autoscale is not None
    assert made.status.autoscale.servers == 2
    assert made.requeue_after_s == SETTINGS.waiting_s  # nothing is watched that would tell when to give up


def test_servers_that_no_node_has_room_for_are_given_back() -> None:
    made = decided(running(), load_of(WAITING), *pods(unschedulable(1)), now=later(300))
    assert made.status.autoscale is not None
    assert made.status.autoscale.message == "1 server instead of 2: no node had room for 1 server for 300 s"
    assert borrowed_of(made) == []


def test_a_running_server_with_a_higher_number_stays_when_a_pending_one_is_given_back() -> None:
    given = running(servers__replicas=3)
    observed = (borrowed_set(1), borrowed_set(2), unschedulable(1), scheduled(2))
    made = decided(given, load_of(Sample(0.02, 0.0)), *pods(*observed), now=later(900))
    assert made.status.autoscale is not None
    assert made.status.autoscale.servers == 2
    assert borrowed_of(made) == [2]
    assert [name for kind, name in made.prune if kind == "StatefulSet"] == ["case-borrow-1"]


def test_no_server_is_borrowed_whose_address_the_trainer_lacks() -> None:
    given = running(servers__replicas=4)
    known = job(1)
    known["metadata"]["annotations"]["areal.dev/servers"] = "3"
    observed = (server_set(), claim(), known, pod(SERVER), pod(TRAINER), scheduled(1), scheduled(2))
    made = decided(given, None, *observed, now=later(60))
    assert borrowed_of(made) == [1, 2]


def test_nothing_changes_while_the_trainer_starts_or_the_run_is_being_suspended() -> None:
    begun = started(**ELASTIC)
    made = decided(begun, load_of(WAITING), server_set(), claim(), job(1), now=later(60))
    assert made.status.phase == "Starting"
    assert made.status.autoscale is not None
    assert made.status.autoscale.servers == 2
    suspended = running()
    stopping = replace(suspended, experiment=state(**ELASTIC, runPolicy__suspend=True).experiment)
    made = decided(stopping, load_of(WAITING), *pods(scheduled(1)), now=later(60))
    assert made.status.autoscale == suspended.status.autoscale


def test_a_lower_maximum_holds_at_once() -> None:
    given = running(servers__replicas=4)
    edited = replace(given, experiment=state(servers__replicas=2, servers__autoscale={"min": 1, "max": 3}).experiment)
    made = decided(edited, None, *pods(scheduled(1), scheduled(2), scheduled(3)), now=later(1))
    assert made.status.autoscale is not None
    assert (made.status.autoscale.servers, made.status.autoscale.reason) == (3, "OutOfBounds")


def reported(given: ExperimentState, step: int, **values: Any) -> ExperimentState:
    changes = {"step": step, "rollout_wait": 0.5, "servers_idle": 0.0, "servers_current": 2, **values}
    return replace(given, status=given.status.model_copy(update=changes))


def test_reports_of_all_servers_are_remembered_until_the_number_changes() -> None:
    loads, given = Loads(), running()
    loads.observe(KEY, given, NOW)
    history = None
    for step in range(1, SETTLE + MEASURED + 1):
        history = loads.observe(KEY, reported(given, step), NOW)
        assert loads.observe(KEY, reported(given, step), NOW) == history  # a reconcile without a new report
    assert history is not None
    assert history.samples == (WAITING,) * MEASURED
    missing = loads.observe(KEY, reported(given, 99, servers_current=1), NOW)
    assert missing is not None
    assert missing.samples == history.samples
    made = decided(given, history, *pods(scheduled(1)), now=later(60))
    loads.decided(KEY, given.status, made.status, later(60))
    changed = loads.observe(KEY, reported(continued(given, made), 100), later(60))
    assert changed is not None
    assert (changed.samples, [(one.before, one.after, one.cause) for one in changed.changes]) == (
        (),
        [(2, 4, "TrainerWaits")],
    )


def test_another_attempt_and_another_experiment_of_the_name_are_measured_from_the_start() -> None:
    loads, given = Loads(), running()
    for step in range(1, 20):
        loads.observe(KEY, reported(given, step), NOW)
    for other in (
        replace(given, status=given.status.model_copy(update={"attempt": 2})),
        replace(given, uid="another"),
    ):
        history = loads.observe(KEY, reported(other, 19), later(5))
        assert history == History(later(5).timestamp(), 19, servers=2)
    assert loads.observe(KEY, state(), NOW) is None  # a fixed number of servers
