"""Pod templates: Pod Security "restricted", devices, users, mounts, environment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from areal_api import names, resource_names
from areal_api.pod_containers import OWN_CONTAINERS
from areal_operator.manifests.pod import compute_threads
from areal_operator.settings import Settings
from support import operator_objects
from support.operator_manifests import env_of, made, pods
from support.operator_objects import decide, manifest, state


@pytest.mark.parametrize("pod", pods(), ids=["server", "trainer"])
def test_pods_meet_the_restricted_standard(pod: Any) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    allowed = {"persistentVolumeClaim", "configMap", "secret", "emptyDir", "projected"}
    assert all(allowed & set(volume) for volume in pod["volumes"])
    assert pod["automountServiceAccountToken"] is False


def test_a_process_on_cuda_gets_a_gpu_unless_gpus_are_named() -> None:
    server, trainer = pods(servers__tensorParallel=2, trainer__processesPerNode=4)
    assert server["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    assert trainer["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "4"}
    other = {"limits": {"amd.com/gpu": "1"}}
    (server, _) = pods(servers__resources=other)
    assert server["containers"][0]["resources"]["limits"] == other["limits"]
    (server, _) = pods(servers__device="cpu", trainer__device="cpu")
    assert server["containers"][0]["resources"] == {}


@pytest.mark.parametrize(
    "resource",
    ["nvidia.com/mig-1g.5gb", "nvidia.com/gpu.shared", "amd.com/gpu", "gpu.intel.com/i915", "habana.ai/gaudi"],
)
def test_no_gpu_is_added_to_other_devices(resource: str) -> None:
    for part in ("limits", "requests"):
        (server, trainer) = pods(servers__resources={part: {resource: 1}}, trainer__resources={part: {resource: 1}})
        for pod in (server, trainer):
            assert pod["containers"][0]["resources"][part][resource] == 1
            assert "nvidia.com/gpu" not in pod["containers"][0]["resources"].get("limits", {})


@pytest.mark.parametrize("resource", ["rdma/hca_shared_devices_a", "vpc.amazonaws.com/efa", "hugepages-2Mi"])
def test_a_gpu_is_added_to_network_devices(resource: str) -> None:
    (server, _) = pods(servers__resources={"limits": {resource: 1}})
    assert server["containers"][0]["resources"]["limits"] == {resource: 1, "nvidia.com/gpu": "1"}


def test_pods_on_cuda_request_cpu_and_memory_by_gpu_unless_they_are_listed() -> None:
    server, trainer = pods(servers__tensorParallel=2, trainer__processesPerNode=4)
    assert server["containers"][0]["resources"]["requests"] == {"cpu": "6", "memory": "24Gi"}
    assert trainer["containers"][0]["resources"]["requests"] == {"cpu": "12", "memory": "96Gi"}
    listed = {"requests": {"cpu": 1}, "limits": {"memory": "8Gi"}}
    (server, _) = pods(servers__resources=listed)
    assert server["containers"][0]["resources"] == {
        "requests": {"cpu": 1},
        "limits": {"memory": "8Gi", "nvidia.com/gpu": "1"},
    }


def test_no_gpu_is_added_to_dynamic_resource_claims() -> None:
    claim = {"name": "gpu", "resourceClaimTemplateName": "h200"}
    (server, _) = pods(servers__resources={"claims": [{"name": "gpu"}]}, servers__resourceClaims=[claim])
    assert server["containers"][0]["resources"]["claims"] == [{"name": "gpu"}]
    assert server["resourceClaims"] == [claim]
    assert "limits" not in server["containers"][0]["resources"]


def test_user_and_groups_can_be_left_out() -> None:
    (server, _) = pods(servers__podSecurity={"runAsUser": None, "runAsGroup": None, "fsGroup": None})
    assert server["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    (server, _) = pods(servers__podSecurity={"runAsUser": 2000, "supplementalGroups": [7]})
    context = server["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["supplementalGroups"]) == (2000, 1000, [7])


def test_the_users_environment_takes_precedence_and_the_operators_labels_do() -> None:
    (server, _) = pods(
        servers__env=[{"name": "HF_HOME", "value": "/x"}, {"name": "T", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]
    )
    assert env_of(server)["HF_HOME"] == "/x"
    assert env_of(server)["T"] == {"fieldRef": {"fieldPath": "x"}}
    template = made("StatefulSet", servers__podLabels={resource_names.EXPERIMENT: "other", "team": "x"})["spec"][
        "template"
    ]
    assert template["metadata"]["labels"] == {**resource_names.component_labels("case", "server"), "team": "x"}


def test_the_volume_is_mounted_at_the_file_root() -> None:
    for fileroot, path in (("runs", "/opt/areal/runs"), ("/data/runs", "/data/runs")):
        (server, trainer) = pods(config__cluster__fileroot=fileroot)
        for pod in (server, trainer):
            mounted = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
            assert mounted["areal-run"] == path
        assert env_of(trainer)[names.RUN_DIR] == f"{path}/case/trial0"


def test_servers_cannot_write_the_volume_that_the_trainer_reads() -> None:
    (server, trainer) = pods(servers__args={"tool_call_parser": "qwen"})
    claims = {volume["name"] for volume in server["volumes"] if "persistentVolumeClaim" in volume}
    for container in [*server["containers"], *server.get("initContainers", [])]:
        assert {mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")}.isdisjoint(claims)
    for container in [*trainer["containers"], *trainer["initContainers"]]:
        (run,) = [mount for mount in container["volumeMounts"] if mount["name"] in claims]
        assert not run.get("readOnly")


def test_models_are_downloaded_to_where_each_pod_may_write() -> None:
    (server, trainer) = pods(config__cluster__fileroot="/data/runs")
    for pod, cache in ((server, "/tmp/.cache/huggingface"), (trainer, "/data/runs/.huggingface")):
        assert env_of(pod)["HF_HOME"] == cache
        mounts = pod["containers"][0]["volumeMounts"]
        (holder,) = [mount for mount in mounts if cache.startswith(mount["mountPath"] + "/")]
        assert not holder.get("readOnly")


def test_pods_share_a_node_if_only_one_node_can_mount_the_volume() -> None:
    for pod in pods(storage__accessModes=["ReadWriteOnce"]):
        (term,) = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert term["topologyKey"] == "kubernetes.io/hostname"
    for pod in pods(servers__device="cpu", trainer__device="cpu"):
        assert "affinity" not in pod


@pytest.mark.parametrize(
    ("resources", "processes", "threads"),
    [
        ({}, 1, 1),
        ({"limits": {"cpu": "8"}}, 2, 4),
        ({"requests": {"cpu": "1500m"}}, 1, 1),
        ({"limits": {"cpu": 4}, "requests": {"cpu": 1}}, 1, 4),
    ],
)
def test_cores_are_shared_among_the_processes_of_a_pod(resources: Any, processes: int, threads: int) -> None:
    settings = state(servers__resources=resources).experiment.spec.servers
    assert compute_threads(settings, processes) == threads


def test_pods_log_in_the_operators_format(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(names.LOG_FORMAT not in env_of(pod) for pod in pods())
    monkeypatch.setattr(operator_objects, "SETTINGS", replace(operator_objects.SETTINGS, json_logs=True))
    assert all(env_of(pod)[names.LOG_FORMAT] == "json" for pod in pods())
    assert Settings.from_env({"AREAL_LOG_FORMAT": "json"}).json_logs


FABRIC = {"ipcLock": True, "hostNetwork": True}


def test_the_fabric_is_added_to_the_pods_that_ask_for_it() -> None:
    allowed = replace(operator_objects.SETTINGS, fabric=frozenset(FABRIC))
    plan = decide(state(trainer={"fabric": FABRIC}), settings=allowed)
    server, trainer = (manifest(plan, kind)["spec"]["template"]["spec"] for kind in ("StatefulSet", "Job"))
    assert (trainer["hostNetwork"], trainer["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    assert trainer["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert "hostNetwork" not in server
    assert server["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("key", FABRIC)
def test_a_cluster_that_does_not_allow_it_refuses_the_experiment(key: str) -> None:
    plan = decide(state(servers={"fabric": {key: True}}))
    (accepted,) = [condition for condition in plan.status.conditions if condition.type == "Accepted"]
    assert accepted.status == "False"
    assert f"fabric.{key} is true, which this cluster does not allow" in accepted.message


def test_init_containers_follow_the_operators_own_and_meet_pod_security() -> None:
    proxy = {"name": "proxy", "image": "p", "restartPolicy": "Always", "securityContext": {"runAsUser": 5}}
    (server, trainer) = pods(servers__initContainers=[proxy], trainer__initContainers=[proxy])
    assert [one["name"] for one in trainer["initContainers"]] == ["prepare", "proxy"]
    (made,) = server["initContainers"]
    assert made["restartPolicy"] == "Always"
    assert made["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "runAsUser": 5,
    }
    assert made["volumeMounts"] == [{"name": "areal-tmp", "mountPath": "/tmp"}]


def test_a_service_account_must_be_allowed_by_the_cluster() -> None:
    refused = decide(state(servers__serviceAccountName="s3"))
    assert "serviceAccountName is s3, which this cluster does not allow; use one of none" in refused.status.message
    allowed = replace(operator_objects.SETTINGS, service_accounts=("team-*", "s3"))
    for name in ("s3", "team-a"):
        plan = decide(state(trainer__serviceAccountName=name), settings=allowed)
        assert manifest(plan, "Job")["spec"]["template"]["spec"]["serviceAccountName"] == name
        assert manifest(plan, "StatefulSet")["spec"]["template"]["spec"]["serviceAccountName"] == "case-run"


def test_packing_prefers_or_demands_one_domain_beside_one_node() -> None:
    for section in (0, 1):
        affinity = pods(packing={"topologyKey": "rack"})[section]["affinity"]["podAffinity"]
        terms = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
        assert [term["podAffinityTerm"]["topologyKey"] for term in terms] == ["kubernetes.io/hostname", "rack"]
        affinity = pods(packing={"topologyKey": "rack", "required": True})[section]["affinity"]["podAffinity"]
        (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
        assert term["topologyKey"] == "rack"
        assert term["labelSelector"]["matchLabels"]["areal.dev/experiment"] == "case"


def test_the_names_of_the_operators_containers_are_those_that_users_may_not_take() -> None:
    own = {one["name"] for pod in pods() for one in [*pod["containers"], *pod.get("initContainers", [])]}
    assert own <= set(OWN_CONTAINERS)
