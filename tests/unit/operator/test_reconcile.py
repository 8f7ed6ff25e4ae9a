"""The reconciler with an API server in memory: what it writes, what it leaves alone, what it reports."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from areal_api import resource_names
from areal_api.experiment import KIND
from areal_operator.cluster import CHILD_KINDS, ApiError
from areal_operator.experiments import Experiments
from areal_operator.observed import Object
from areal_operator.queueing.positions import Positions
from areal_operator.reconcile import Reconciler
from areal_operator.settings import Settings
from areal_operator.store import Store
from areal_operator.warning_events import NamespaceWarnings
from hack.testbed.experiment_case import Case
from support.memory_cluster import MemoryCluster
from support.operator_objects import NOW, SETTINGS
from support.operator_objects import pod as pod_of

KEY = ("ns", "case")


class World:
    """One experiment, its cluster and a reconciler with the watch's view of it."""

    def __init__(self, settings: Settings = SETTINGS, **changes: Any) -> None:
        self.cluster = MemoryCluster()
        self.settings = settings
        self.now: datetime = NOW
        self.create(**changes)
        self.restart()

    def create(self, **changes: Any) -> None:
        """Create the experiment."""
        body = Case("", {f"spec.{key.replace('__', '.')}": value for key, value in changes.items()}).experiment()
        self.cluster.add({**body, "kind": KIND, "metadata": {"name": "case", "namespace": "ns"}})

    def restart(self) -> None:
        """A new operator process."""
        self.store, self.experiments = Store(), Experiments()
        self.warnings = NamespaceWarnings(self.cluster, max_age_s=self.settings.waiting_s / 3)
        self.reconciler = Reconciler(
            self.cluster,
            self.store,
            self.experiments,
            self.warnings,
            settings=self.settings,
            root_key=b"root",
            positions=Positions(self.cluster),
            now=lambda: self.now,
        )

    async def sync(self) -> None:
        """Bring the cache up to date."""
        selector = f"{resource_names.MANAGED_BY}={resource_names.OPERATOR}"
        for kind in CHILD_KINDS:
            listed = await self.cluster.list(kind, None, selector)
            self.store.replace(kind, listed.items, listed.version)
        bodies = (await self.cluster.list(KIND, None)).items
        for body in bodies:
            self.experiments.put(body)
        if not bodies:
            self.experiments.remove(KEY)

    async def run(self, times: int = 3) -> float | None:
        """Reconcile with an up-to-date cache, several times as the queue would; returns the last delay."""
        delay: float | None = None
        for _ in range(times):
            await self.sync()
            delay = await self.reconciler.reconcile(KEY)
        return delay

    @property
    def status(self) -> Object:
        return dict(self.cluster.objects[KIND, "ns", "case"].get("status") or {})

    def condition(self, kind: str) -> Object:
        return next((one for one in self.status.get("conditions", []) if one["type"] == kind), {})

    def writes_of(self, kind: str) -> int:
        return sum(of_kind == kind for _, of_kind, _ in self.cluster.writes)


async def test_a_second_reconcile_writes_nothing() -> None:
    world = World()
    await world.run()
    before = len(world.cluster.writes)
    await world.run()
    assert world.cluster.writes[before:] == []


async def test_secrets_are_created_and_never_read() -> None:
    world = World()
    await world.run()
    await world.run()
    world.restart()
    await world.run()
    (name,) = world.cluster.names("Secret")
    assert {(method, path) for method, kind, path in world.cluster.requests if kind == "Secret"} == {("POST", "")}
    assert world.cluster.objects["Secret", "ns", name]["immutable"] is True


async def test_a_deleted_secret_is_created_again_with_the_same_key() -> None:
    world = World(settings=replace(SETTINGS, waiting_s=0.0))
    await world.run()
    (name,) = world.cluster.names("Secret")
    key = world.cluster.remove("Secret", "ns", name)["data"]
    await world.run()
    assert world.cluster.names("Secret") == []  # nothing needs it
    conditions = [{"type": "PodScheduled", "status": "True"}]
    pod = pod_of(resource_names.SERVER, phase="Pending", conditions=conditions)
    pod["metadata"]["namespace"] = "ns"
    uid = world.cluster.add(pod)["metadata"]["uid"]
    before = world.writes_of("Secret")
    await world.run()
    assert world.writes_of("Secret") == before  # the pod is starting, as far as anybody knows
    text = f'MountVolume.SetUp failed for volume "areal-api-key" : secret "{name}" not found'
    event = {"involvedObject": {"uid": uid}, "type": "Warning", "reason": "FailedMount", "message": text}
    world.cluster.add({**event, "kind": "Event", "metadata": {"name": "e", "namespace": "ns"}})
    await world.run()
    assert world.cluster.objects["Secret", "ns", name]["data"] == key


async def test_an_experiment_that_waits_for_gpus_is_planned_again_only_after_a_change() -> None:
    world = World()
    message = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    await world.run()
    for component in (resource_names.SERVER, resource_names.TRAINER):
        pod = pod_of(component, phase="Pending", conditions=[scheduled])
        world.cluster.add({**pod, "metadata": {**pod["metadata"], "namespace": "ns"}})
    world.cluster.edit("PersistentVolumeClaim", "ns", "case-run", {"status": {"phase": "Bound"}})
    assert await world.run() is None
    assert world.condition("ServersReady")["reason"] == "Unschedulable"
    assert await world.warnings.changed() == []


async def test_a_start_reads_nothing_and_writes_each_object_once() -> None:
    world = World()
    await world.sync()
    before = len(world.cluster.requests)
    assert await world.reconciler.reconcile(KEY) == pytest.approx(0.5)
    requests = world.cluster.requests[before:]
    shared = ("Event", "ResourceQuota")  # one request for all experiments of a namespace
    assert [request for request in requests if request[0] == "GET" and request[1] not in shared] == []
    assert len(set(requests)) == len(requests)


async def test_a_start_is_reported_twice_however_many_changes_it_takes() -> None:
    world = World(settings=replace(SETTINGS, status_s=60.0))
    await world.run()
    world.cluster.edit("PersistentVolumeClaim", "ns", "case-run", {"status": {"phase": "Bound"}})
    delay = await world.run()
    assert delay is not None
    assert 0.0 < delay <= 60.0  # what is held back is written then
    for component in (resource_names.SERVER, resource_names.TRAINER):
        pod = pod_of(component, phase="Pending", conditions=[])
        world.cluster.add({**pod, "metadata": {**pod["metadata"], "namespace": "ns"}})
        await world.run()
    assert world.writes_of(KIND) == 2  # its creation, and the first attempt
    for component in (resource_names.SERVER, resource_names.TRAINER):
        name = pod_of(component)["metadata"]["name"]
        world.cluster.edit("Pod", "ns", name, {"status": pod_of(component)["status"]})
        await world.run()
    assert world.status["phase"] == "Running"
    assert world.condition("StorageReady")["status"] == "True"
    assert world.writes_of(KIND) == 3
    assert await world.run() is None


async def test_an_object_of_somebody_else_is_found_without_being_read_first() -> None:
    world = World()
    foreign = {"kind": "NetworkPolicy", "metadata": {"name": "case-run", "namespace": "ns"}, "spec": {"a": "b"}}
    world.cluster.add(foreign)
    before = world.writes_of("NetworkPolicy")
    await world.run()
    assert world.condition("Accepted")["reason"] == "NameTaken"
    assert world.writes_of("NetworkPolicy") == before
    assert world.cluster.objects["NetworkPolicy", "ns", "case-run"]["spec"] == {"a": "b"}


async def test_an_edited_configuration_is_in_a_new_secret_before_pods_mount_it() -> None:
    world = World()
    await world.run()
    before = world.cluster.names("Secret")
    change = {"spec": {"config": {"seed": 7}}, "metadata": {"generation": 2}}
    world.cluster.edit(KIND, "ns", "case", change)
    world.restart()  # what exists is not remembered
    count = len(world.cluster.writes)
    await world.run()
    (new,) = set(world.cluster.names("Secret")) - set(before)
    written = [(kind, name) for _, kind, name in world.cluster.writes[count:] if kind in ("Secret", "StatefulSet")]
    assert written == [("Secret", new), ("StatefulSet", "case-server")]
    volumes = world.cluster.objects["StatefulSet", "ns", "case-server"]["spec"]["template"]["spec"]["volumes"]
    assert new in [one["secret"]["secretName"] for one in volumes if "secret" in one]
    count = len(world.cluster.writes)
    world.restart()
    await world.run()
    assert world.cluster.writes[count:] == []


async def test_an_object_of_ours_that_lost_its_labels_is_restored() -> None:
    world = World()
    await world.run()
    labels = dict.fromkeys(world.cluster.objects["Service", "ns", "case-server"]["metadata"]["labels"])
    world.cluster.edit("Service", "ns", "case-server", {"metadata": {"labels": labels}})
    world.restart()
    await world.run()
    found = world.cluster.objects["Service", "ns", "case-server"]["metadata"]["labels"]
    assert found.keys() == labels.keys()


async def test_a_bound_claim_is_not_written_again() -> None:
    world = World()
    await world.run()
    before = world.writes_of("PersistentVolumeClaim")
    bound = {"spec": {"volumeName": "pv-1", "storageClassName": "fast"}, "status": {"phase": "Bound"}}
    world.cluster.edit("PersistentVolumeClaim", "ns", "case-run", bound, manager="kube-controller-manager")
    await world.run()
    world.restart()
    await world.run()
    assert world.writes_of("PersistentVolumeClaim") == before
    assert world.condition("StorageReady")["status"] == "True"


async def test_a_refused_secret_holds_up_the_pods_that_need_it() -> None:
    world = World()
    world.cluster.check = lambda method, obj: (
        ApiError(403, "Forbidden", "exceeded quota: secrets=10") if obj["kind"] == "Secret" else None
    )
    await world.run()
    assert world.cluster.names("Job") == world.cluster.names("StatefulSet") == []
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "Refused")
    assert "exceeded quota" in accepted["message"]
    world.cluster.check = lambda method, obj: None
    await world.run()
    assert world.cluster.names("Job") == ["case-trainer-1"]
    assert world.condition("Accepted")["status"] == "True"


async def test_a_successor_of_the_same_name_has_a_secret_of_its_own() -> None:
    world = World()
    await world.run()
    before = world.cluster.names("Secret")
    del world.cluster.objects[KIND, "ns", "case"]
    await world.run()
    world.create()
    await world.run()
    (old,) = before
    (new,) = set(world.cluster.names("Secret")) - {old}
    assert world.cluster.objects["Secret", "ns", new]["data"] != world.cluster.objects["Secret", "ns", old]["data"]


async def test_a_job_deleted_between_plan_and_apply_is_not_created_again() -> None:
    world = World()
    await world.run()
    job = world.cluster.objects["Job", "ns", "case-trainer-1"]
    assert world.status["jobUid"] == job["metadata"]["uid"]
    deleted: list[Object] = []

    def delete_while_the_objects_are_applied(method: str, obj: Object) -> ApiError | None:
        if obj["kind"] == "Service" and not deleted:  # of the first wave; the Job is in the second
            deleted.append({**world.cluster.remove("Job", "ns", "case-trainer-1"), "kind": "Job"})
            world.store.remove(deleted[0])
        return None

    world.cluster.edit("Service", "ns", "case-server", {"spec": {"publishNotReadyAddresses": False}})
    world.cluster.check = delete_while_the_objects_are_applied
    await world.sync()
    before = world.writes_of("Job")
    assert await world.reconciler.reconcile(KEY) == 0.0  # at once, with what is known now
    assert deleted
    assert world.writes_of("Job") == before
    assert world.cluster.names("Job") == []
    await world.run()
    assert world.cluster.names("Job") == ["case-trainer-2"]


async def test_the_uid_of_the_job_is_recorded() -> None:
    world = World()
    await world.run()
    job = world.cluster.objects["Job", "ns", "case-trainer-1"]
    assert world.status["jobUid"] == job["metadata"]["uid"]


async def test_a_job_that_another_controller_collects_is_not_created_again() -> None:
    world = World(runPolicy__backoffLimit=1)
    await world.run()
    finished = {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}
    world.cluster.edit("Job", "ns", "case-trainer-1", finished)
    world.store.remove({**world.cluster.remove("Job", "ns", "case-trainer-1"), "kind": "Job"})
    await world.run()
    assert world.status["phase"] == "Succeeded"
    assert world.cluster.names("Job") == []


async def test_a_job_collected_while_no_operator_runs_leads_to_a_defined_result() -> None:
    world = World(runPolicy__backoffLimit=0)
    await world.run()
    world.cluster.remove("Job", "ns", "case-trainer-1")
    world.restart()
    await world.run()
    assert world.status["phase"] == "Failed"
    assert world.condition("Succeeded")["reason"] == "OutcomeUnknown"


async def test_fields_added_by_other_controllers_cause_no_write() -> None:
    world = World()
    await world.run()
    before = len(world.cluster.writes)
    for kind, name in (("Job", "case-trainer-1"), ("StatefulSet", "case-server"), ("Service", "case-server")):
        world.cluster.edit(kind, "ns", name, {"metadata": {"annotations": {"team": "x"}, "labels": {"y": "z"}}})
    await world.run()
    assert world.cluster.writes[before:] == []


async def test_a_changed_field_is_restored_and_additions_stay() -> None:
    world = World()
    await world.run()
    world.cluster.edit(
        "StatefulSet", "ns", "case-server", {"metadata": {"labels": {"y": "z"}}, "spec": {"replicas": 5}}
    )
    await world.run()
    stateful_set = world.cluster.objects["StatefulSet", "ns", "case-server"]
    assert (stateful_set["spec"]["replicas"], stateful_set["metadata"]["labels"]["y"]) == (1, "z")


async def test_only_mutable_fields_of_a_job_are_written_again() -> None:
    world = World()
    world.cluster.mutate_on_create = lambda obj: (
        obj["spec"]["template"]["spec"].update(tolerations=[]) if (obj.get("spec", {}).get("template")) else None
    )
    await world.run()

    def immutable(method: str, obj: Object) -> ApiError | None:
        template = obj["kind"] == "Job" and "template" in obj.get("spec", {})
        return ApiError(422, "Invalid", "spec.template: field is immutable\n{…}") if template else None

    world.cluster.check = immutable
    world.cluster.edit(
        "Job", "ns", "case-trainer-1", {"spec": {"suspend": True}, "metadata": {"annotations": {"a": "b"}}}
    )
    await world.run()
    job = world.cluster.objects["Job", "ns", "case-trainer-1"]
    assert (job["spec"]["suspend"], job["metadata"]["annotations"]["a"]) == (False, "b")
    assert [method for method, kind, _ in world.cluster.writes if kind == "Job"] == ["APPLY", "PATCH"]
    assert job["spec"]["template"]["spec"]["tolerations"] == []
    assert world.condition("Accepted")["status"] == "True"


async def test_an_object_that_is_changed_again_and_again_is_named() -> None:
    world = World()
    await world.run()
    for _ in range(6):
        world.cluster.edit("Job", "ns", "case-trainer-1", {"spec": {"suspend": True}}, manager="kueue")
        await world.run(2)
    contested = world.condition("Contested")
    assert (contested["status"], contested["reason"]) == ("True", "ChangedByOthers")
    assert "field manager kueue keeps changing Job case-trainer-1" in contested["message"]
    before = world.writes_of("Job")
    world.cluster.edit("Job", "ns", "case-trainer-1", {"spec": {"suspend": True}}, manager="kueue")
    assert await world.run(2) == pytest.approx(15.0)
    assert world.writes_of("Job") == before  # the fight is slowed down


async def test_a_claim_that_may_not_grow_does_not_hold_up_the_run() -> None:
    world = World()
    await world.run()

    def no_growth(method: str, obj: Object) -> ApiError | None:
        grows = obj["kind"] == "PersistentVolumeClaim" and method == "PATCH"
        return ApiError(403, "Forbidden", "only dynamically provisioned pvc can be resized") if grows else None

    world.cluster.check = no_growth
    world.cluster.edit(KIND, "ns", "case", {"spec": {"storage": {"size": "900Gi"}}, "metadata": {"generation": 2}})
    world.cluster.edit("Service", "ns", "case-server", {"spec": {"publishNotReadyAddresses": False}})
    await world.run()
    assert world.cluster.objects["Service", "ns", "case-server"]["spec"]["publishNotReadyAddresses"] is True
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "Refused")
    assert "PersistentVolumeClaim case-run: only dynamically" in accepted["message"]


async def test_a_claim_of_somebody_else_is_neither_changed_nor_owned() -> None:
    world = World(storage__whenDeleted="Delete")
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"kind": "PersistentVolumeClaim", "metadata": {"name": "case-run", "namespace": "ns"}, "spec": spec}
    world.cluster.add({**claim, "status": {"phase": "Bound"}})
    before = world.writes_of("PersistentVolumeClaim")
    await world.run()
    assert world.writes_of("PersistentVolumeClaim") == before
    assert "ownerReferences" not in world.cluster.objects["PersistentVolumeClaim", "ns", "case-run"]["metadata"]
    assert world.condition("StorageReady")["reason"] == "NotOurs"
    assert world.cluster.names("Job") == ["case-trainer-1"]


async def test_a_phase_of_another_version_is_left_alone() -> None:
    world = World()
    await world.run()
    world.cluster.edit(KIND, "ns", "case", {"status": {"phase": "Paused"}})
    before = len(world.cluster.writes)
    assert await world.run() is None
    assert world.cluster.writes[before:] == []


async def test_an_older_definition_loses_only_the_fields_that_it_lacks(caplog: pytest.LogCaptureFixture) -> None:
    world = World()

    def older(method: str, obj: Object) -> ApiError | None:
        if "jobUid" not in (obj.get("status") or {}):
            return None
        return ApiError(500, "", "failed to create typed patch object\n.status.jobUid: field not declared in schema")

    world.cluster.check = older
    await world.run()
    assert world.status["phase"] == "Starting"
    assert "jobUid" not in world.status
    named = [record for record in caplog.records if "lacks status.jobUid" in record.getMessage()]
    assert len(named) == 1


async def test_a_spec_that_cannot_be_processed_is_explained_once() -> None:
    world = World(servers__resources={"limits": {"cpu": "1e400"}}, servers__device="cpu")
    assert await world.run(2) is None
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "Invalid")
    assert "cpu" in accepted["message"]


async def test_a_restarted_operator_applies_nothing_again() -> None:
    world = World()
    await world.run()
    before = len(world.cluster.writes)
    world.restart()
    await world.run()
    assert world.cluster.writes[before:] == []


async def test_a_restarted_operator_restores_what_changed_in_the_meantime() -> None:
    world = World()
    await world.run()
    world.cluster.edit("StatefulSet", "ns", "case-server", {"spec": {"replicas": 5}})
    world.cluster.edit("Service", "ns", "case-server", {"metadata": {"annotations": {"team": "x"}}})
    before = len(world.cluster.writes)
    world.restart()
    await world.run()
    assert [name for _, _, name in world.cluster.writes[before:]] == ["case-server"]
    assert world.cluster.objects["StatefulSet", "ns", "case-server"]["spec"]["replicas"] == 1
