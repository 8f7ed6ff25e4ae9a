"""The life of an experiment on a real API server, controller manager and scheduler."""

from __future__ import annotations

from typing import Any

import pytest

from hack.testbed.experiments import Experiment
from hack.testbed.fake_kubelet import Behaviour, end, hang, run, wait
from hack.testbed.kube_api import Object, Refused, eventually

OOM = {"exitCode": 137, "reason": "OOMKilled"}


def running(experiment: Experiment, **changes: Any) -> Experiment:
    """The experiment, created and running."""
    experiment.apply(**changes)
    experiment.until_phase("Running")
    return experiment


def test_an_experiment_runs_to_its_end(experiment: Experiment) -> None:
    namespace = experiment.namespace
    running(experiment, servers__replicas=2)
    status = experiment.until(lambda now: now["servers"]["ready"] == 2, "two servers")
    assert (status["attempt"], status["servers"]["summary"]) == (1, "2/2")
    assert experiment.condition("StorageReady")["reason"] == "Bound"
    namespace.behave("trainer", end(0))
    status = experiment.until_phase("Succeeded")
    assert status["completionTime"]
    assert experiment.condition("Succeeded")["lastTransitionTime"]
    eventually(lambda: not namespace.names("StatefulSet"), "the servers are deleted")
    (pod,) = eventually(lambda: len(names := namespace.names("Pod")) == 1 and names, "one pod is left")
    assert pod.startswith("exp-trainer-1-0-")
    assert {"Started", "Running", "Succeeded"} <= {event["reason"] for event in namespace.list("Event")}


WAITING: list[tuple[str, str, Behaviour, str, str]] = [
    ("servers", "server", hang("ImagePullBackOff", 'Back-off pulling image "x"'), "ImagePull", "cannot be pulled"),
    ("servers", "server", hang("CrashLoopBackOff", "back-off 40s", last={"terminated": OOM}), "OutOfMemory", "limits"),
    ("trainer", "trainer", hang("CreateContainerConfigError", 'secret "hf" not found'), "MissingSecret", '"hf"'),
    ("trainer", "trainer", hang("RunContainerError", "exec: python3: not found"), "ContainerStart", "python3"),
]


@pytest.mark.parametrize(
    ("what", "component", "behaviour", "reason", "text"), WAITING, ids=[case[3] for case in WAITING]
)
def test_a_pending_component_names_the_reason(
    experiment: Experiment, what: str, component: str, behaviour: Behaviour, reason: str, text: str
) -> None:
    experiment.namespace.behave(component, behaviour)
    experiment.apply()
    condition = experiment.until_reason("ServersReady" if what == "servers" else "TrainerRunning", reason)
    assert text in condition["message"]
    assert text in experiment.status["message"]
    assert experiment.status["phase"] == "Starting"
    eventually(lambda: experiment.namespace.events(reason), "an Event names it, too")
    experiment.namespace.behave(component, run)
    experiment.until_phase("Running")


def test_unschedulable_pods_are_reported(experiment: Experiment) -> None:
    experiment.apply(servers__nodeSelector={"gpu": "none"})
    condition = experiment.until_reason("ServersReady", "Unschedulable")
    assert "node(s) didn't match" in condition["message"]


def test_a_quota_is_reported_and_the_run_continues_without_it(experiment: Experiment) -> None:
    api, name = experiment.namespace.api, experiment.namespace.name
    experiment.namespace.refuse_pods()
    experiment.apply()
    condition = experiment.until_reason("TrainerRunning", "QuotaExceeded")
    assert "exceeded quota: none" in condition["message"]
    api.delete("ResourceQuota", name, "none")
    experiment.until_phase("Running", 60.0)


def test_an_unprovisioned_claim_is_reported(experiment: Experiment) -> None:
    experiment.apply(storage__storageClassName="missing")
    condition = experiment.until_reason("StorageReady", "ProvisioningFailed", 60.0)
    assert 'storageclass.storage.k8s.io "missing" not found' in condition["message"]


def test_an_object_that_the_api_server_refuses_is_reported(experiment: Experiment) -> None:
    experiment.apply(servers__resources={"limits": {"memory": "1Gi"}, "requests": {"memory": "2Gi"}})
    condition = experiment.until_reason("Accepted", "Refused")
    assert "StatefulSet exp-server" in condition["message"]
    experiment.edit(servers__resources__limits__memory="2Gi")
    experiment.until_phase("Running")
    assert experiment.condition("Accepted")["status"] == "True"


def test_a_violation_of_pod_security_is_reported(experiment: Experiment) -> None:
    experiment.apply(servers__volumes=[{"name": "host", "hostPath": {"path": "/"}}])
    condition = experiment.until_reason("ServersReady", "PodSecurity")
    assert 'violates PodSecurity "restricted:latest"' in condition["message"]


def test_a_failed_trainer_is_restarted_up_to_the_backoff_limit(experiment: Experiment) -> None:
    experiment.namespace.behave("trainer", end(1, "RuntimeError: boom\n"))
    experiment.apply(runPolicy__backoffLimit=1)
    status = experiment.until_phase("Failed")
    assert (status["attempt"], status["restarts"], status["disruptions"]) == (2, 1, 0)
    assert "RuntimeError: boom; that was the last of 1 restarts" in status["message"]
    assert experiment.namespace.events("Restarted")
    assert experiment.namespace.names("Job") == ["exp-trainer-1", "exp-trainer-2"]
    eventually(lambda: not experiment.namespace.names("StatefulSet"), "the servers are deleted")


def test_a_restarted_trainer_may_succeed(experiment: Experiment) -> None:
    running(experiment)
    experiment.namespace.behave("trainer", end(1))
    experiment.until(lambda now: "failed" in now.get("message", ""), "the failure")
    experiment.namespace.behave("trainer", run)
    experiment.until(lambda now: now["attempt"] == 2 and now["phase"] == "Running", "the second attempt")
    experiment.namespace.behave("trainer", end(0))
    assert experiment.until_phase("Succeeded")["restarts"] == 1


def test_a_full_volume_is_reported(experiment: Experiment) -> None:
    experiment.namespace.behave("trainer", end(1, "OSError: [Errno 28] No space left on device\n"))
    experiment.apply(runPolicy__backoffLimit=0)
    experiment.until_phase("Failed")
    assert experiment.condition("Succeeded")["reason"] == "VolumeFull"


def test_a_wrong_configuration_is_not_retried(experiment: Experiment) -> None:
    experiment.namespace.behave("trainer", end(1, "error: train_dataset.path: no such file"))
    experiment.apply()
    status = experiment.until_phase("Failed")
    assert (status["attempt"], status["restarts"]) == (1, 0)
    assert experiment.condition("Succeeded")["reason"] == "InvalidConfiguration"


def test_a_deleted_trainer_pod_is_a_disruption(experiment: Experiment) -> None:
    running(experiment, runPolicy__backoffLimit=0)
    (pod,) = [name for name in experiment.namespace.names("Pod") if "trainer" in name]
    experiment.namespace.api.delete("Pod", experiment.namespace.name, pod)
    status = experiment.until(lambda now: now["attempt"] == 2 and now["phase"] == "Running", "the second attempt")
    assert (status["restarts"], status["disruptions"]) == (0, 1)


def test_an_evicted_trainer_pod_is_a_disruption(experiment: Experiment) -> None:
    running(experiment, runPolicy__backoffLimit=0)
    api, name = experiment.namespace.api, experiment.namespace.name
    (pod,) = [pod for pod in experiment.namespace.names("Pod") if "trainer" in pod]
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": name}}
    api.post(f"/api/v1/namespaces/{name}/pods/{pod}/eviction", body)
    status = experiment.until(lambda now: now["attempt"] == 2, "the second attempt")
    assert (status["restarts"], status["disruptions"]) == (0, 1)


def test_one_lost_rank_restarts_all_of_them(experiment: Experiment) -> None:
    running(experiment, trainer__nodes=2)
    namespace = experiment.namespace
    first = [name for name in namespace.names("Pod") if "trainer" in name]
    assert len(first) == 2
    namespace.api.delete("Pod", namespace.name, first[0])
    experiment.until(lambda now: now["attempt"] == 2 and now["phase"] == "Running", "the second attempt")
    second = [name for name in namespace.names("Pod") if "exp-trainer-2-" in name]
    assert len(second) == 2


def test_the_next_attempt_waits_for_a_pod_that_does_not_end(experiment: Experiment) -> None:
    running(experiment)
    namespace = experiment.namespace
    namespace.kubelet.stuck.add(namespace.name)
    namespace.api.delete("Job", namespace.name, "exp-trainer-1")
    experiment.until_reason("TrainerRunning", "WaitingForPods")
    assert "exp-trainer-1-0-" in experiment.status["message"]
    namespace.kubelet.stuck.discard(namespace.name)
    status = experiment.until(lambda now: now["attempt"] == 2 and now["phase"] == "Running", "the second attempt")
    assert (status["restarts"], status["disruptions"]) == (0, 1)


def test_a_patch_of_a_deleted_job_does_not_create_it(experiment: Experiment) -> None:
    """The operator relies on this where a Job is deleted between its observation and its update."""
    running(experiment)
    namespace = experiment.namespace
    patch = {"metadata": {"uid": "0"}, "spec": {"suspend": False}}
    for job, statuses in (("gone", (404,)), ("exp-trainer-1", (409, 422))):
        with pytest.raises(Refused) as refused:
            namespace.api.patch("Job", namespace.name, job, patch)
        assert refused.value.status in statuses
    assert namespace.names("Job") == ["exp-trainer-1"]


def test_suspending_ends_everything_and_resuming_continues(experiment: Experiment) -> None:
    namespace = experiment.namespace
    running(experiment, servers__replicas=2)
    experiment.edit(runPolicy__suspend=True)
    status = experiment.until_phase("Suspended")
    assert (namespace.names("Pod"), namespace.names("Job"), namespace.names("StatefulSet")) == ([], [], [])
    assert "activeSince" not in status
    assert namespace.names("PersistentVolumeClaim") == ["exp-run"]
    experiment.edit(runPolicy__suspend=False)
    status = experiment.until_phase("Running")
    assert (status["attempt"], status["restarts"], status["disruptions"]) == (2, 0, 0)
    assert {"Suspended", "Resumed"} <= {event["reason"] for event in namespace.list("Event")}


def test_a_suspension_completes_even_if_the_flag_is_reset(experiment: Experiment) -> None:
    namespace = experiment.namespace
    running(experiment)
    namespace.kubelet.stuck.add(namespace.name)
    experiment.edit(runPolicy__suspend=True)
    experiment.until_reason("Suspended", "Suspending")
    experiment.edit(runPolicy__suspend=False)
    eventually(lambda: not namespace.names("StatefulSet") and not namespace.names("Job"), "everything is deleted")
    namespace.kubelet.stuck.discard(namespace.name)
    status = experiment.until(lambda now: now["attempt"] == 2 and now["phase"] == "Running", "it runs again")
    assert status["restarts"] == 0


def test_an_experiment_created_suspended_owns_nothing_until_it_is_resumed(experiment: Experiment) -> None:
    namespace = experiment.namespace
    experiment.apply(runPolicy__suspend=True)
    experiment.until_phase("Suspended")
    assert namespace.names("StatefulSet") + namespace.names("Job") + namespace.names("PersistentVolumeClaim") == []
    experiment.edit(config__seed=7)  # it has not started
    experiment.edit(runPolicy__suspend=False)
    experiment.until_phase("Running")


def test_an_operator_without_kueue_starts_nothing_that_names_a_queue(experiment: Experiment) -> None:
    experiment.labels["kueue.x-k8s.io/queue-name"] = "team"
    experiment.apply()
    experiment.until_phase("Queued")
    assert experiment.condition("Admitted")["reason"] == "KueueDisabled"
    assert experiment.namespace.names("PersistentVolumeClaim") == []


def test_servers_are_scaled_during_the_run(experiment: Experiment) -> None:
    namespace = experiment.namespace
    running(experiment, servers__maxReplicas=3)
    patch = {"spec": {"replicas": 3}}
    namespace.api.patch("GRPOExperiment", namespace.name, "exp", patch, "scale")
    experiment.until(lambda now: now["servers"]["summary"] == "3/3", "three servers")
    scale = namespace.api.get("GRPOExperiment", namespace.name, "exp/scale")
    assert scale is not None
    assert scale["status"]["replicas"] == 3
    assert "areal.dev/component=server" in scale["status"]["selector"]
    experiment.edit(servers__replicas=1)
    experiment.until(lambda now: now["servers"]["summary"] == "1/1", "one server")
    assert experiment.status["attempt"] == 1


def test_a_run_past_its_deadline_fails_and_is_not_retried(experiment: Experiment) -> None:
    running(experiment, runPolicy__activeDeadlineSeconds=4)
    experiment.until_phase("Failed")
    assert experiment.condition("Succeeded")["reason"] == "DeadlineExceeded"
    eventually(lambda: not experiment.namespace.names("Pod"), "nothing runs")


def test_a_run_that_cannot_start_releases_its_devices(experiment: Experiment) -> None:
    experiment.namespace.behave("trainer", wait)
    experiment.apply(runPolicy__preRunningDeadlineSeconds=3, trainer__nodeSelector={"gpu": "none"})
    status = experiment.until_phase("Failed")
    assert experiment.condition("Succeeded")["reason"] == "PreRunningDeadlineExceeded"
    assert "node(s) didn't match" in status["message"]
    eventually(lambda: not experiment.namespace.names("Pod"), "nothing is left")


def test_a_finished_experiment_is_deleted_after_its_ttl(experiment: Experiment) -> None:
    experiment.namespace.behave("trainer", end(0))
    experiment.apply(runPolicy__ttlSecondsAfterFinished=2, storage__whenDeleted="Delete")
    experiment.until_phase("Succeeded")
    eventually(lambda: experiment.get() is None, "it is deleted")
    eventually(lambda: experiment.namespace.names("PersistentVolumeClaim") == [], "its volume claim is deleted")


def test_the_volume_is_kept_and_reused_by_a_second_run(experiment: Experiment) -> None:
    namespace = experiment.namespace
    running(experiment)
    (before,) = namespace.list("PersistentVolumeClaim")
    experiment.delete()
    eventually(lambda: namespace.names("StatefulSet") + namespace.names("Job") == [], "everything else is deleted")
    running(experiment, storage__size="200Gi")
    (after,) = namespace.list("PersistentVolumeClaim")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


def test_a_failed_run_stays_failed_without_its_job(experiment: Experiment) -> None:
    namespace = experiment.namespace
    namespace.behave("trainer", end(1))
    experiment.apply(runPolicy__backoffLimit=0)
    experiment.until_phase("Failed")
    namespace.api.delete("Job", namespace.name, "exp-trainer-1")
    eventually(lambda: not namespace.names("Job"), "the Job is deleted")
    namespace.behave("trainer", run)
    experiment.edit(runPolicy__backoffLimit=5)
    experiment.until(lambda now: now["observedGeneration"] == 2, "the edit is observed")
    assert experiment.status["phase"] == "Failed"
    assert namespace.names("Job") == []


def test_the_configuration_of_a_started_run_is_immutable(experiment: Experiment) -> None:
    running(experiment)
    with pytest.raises(Refused, match=r"spec\.config of a run that has started does not change"):
        experiment.edit(config__seed=7)
    with pytest.raises(Refused, match=r"servers\.nodesPerServer of a run that has started does not change"):
        experiment.edit(servers__nodesPerServer=2, servers__tensorParallel=2)
    experiment.edit(servers__image="other:2")  # other fields are mutable
    api, name = experiment.namespace.api, experiment.namespace.name

    def image() -> Object | None:
        found = api.get("StatefulSet", name, "exp-server") or {}
        return found["spec"]["template"]["spec"]["containers"][0]["image"] == "other:2"

    eventually(image, "new servers get the image")
