"""Manifests: pods that meet Pod Security "restricted", torchrun's environment, devices, mounts."""

from __future__ import annotations

import base64
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from areal_api import names, resource_names
from areal_operator.manifests.base import Build
from areal_operator.manifests.pod import CONFIG_FILE, compute_threads
from areal_operator.manifests.shared import network_policy
from areal_operator.settings import Settings
from support import operator_objects
from support.operator_objects import decide, manifest, named, state


def made(kind: str, **changes: Any) -> Any:
    """The manifest of a kind that a new experiment gets."""
    return manifest(decide(state(**changes)), kind)


def pods(**changes: Any) -> list[Any]:
    """Pod specs of servers and trainer."""
    return [made(kind, **changes)["spec"]["template"]["spec"] for kind in ("StatefulSet", "Job")]


def env_of(pod: Any) -> dict[str, Any]:
    """Variables of the main container."""
    entries = pod["containers"][0]["env"]
    assert len({entry["name"] for entry in entries}) == len(entries)
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in entries}


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


def test_the_configuration_is_immutable_and_named_by_its_digest() -> None:
    first, second = made("ConfigMap"), made("ConfigMap", config__seed=2)
    assert first["immutable"] is True
    assert first["metadata"]["name"] != second["metadata"]["name"]
    assert "experiment_name: case" in first["data"]["config.yaml"]


def test_the_key_is_in_a_secret_and_nowhere_else() -> None:
    plan = decide(state())
    assert base64.b64decode(manifest(plan, "Secret")["data"]["api-key"]) == b"s3cret"
    assert "s3cret" not in json.dumps([m["spec"] for m in plan.objects if m["kind"] in ("StatefulSet", "Job")])


def test_the_trainer_has_the_addresses_of_all_servers_up_to_max_replicas() -> None:
    (_, trainer) = pods(servers={"replicas": 1, "maxReplicas": 2})
    assert env_of(trainer)[names.SERVER_ADDRS] == (
        "case-server-0.case-server.ns.svc:30000,case-server-1.case-server.ns.svc:30000"
    )


def test_torchrun_is_configured_by_its_environment() -> None:
    (_, pod) = pods(trainer={"nodes": 2, "processesPerNode": 4})
    env = env_of(pod)
    assert {key: value for key, value in env.items() if key.startswith("PET_")} == {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "4",
        "PET_MASTER_ADDR": "case-trainer-1-0.case-trainer.ns.svc",
        "PET_MASTER_PORT": "29500",
        "PET_MAX_RESTARTS": "0",
        "PET_NODE_RANK": {
            "fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
        },
    }
    assert pod["containers"][0]["command"] == ["python3", "-m", "torch.distributed.run", "-m", "areal_trainer.train"]
    assert pod["subdomain"] == "case-trainer"


def test_the_resolved_configuration_is_copied_to_the_run_directory(tmp_path: Path) -> None:
    (_, pod) = pods()
    shell, option, script, *arguments = pod["initContainers"][0]["command"]
    assert arguments == ["prepare", "/opt/areal/runs/case/trial0"]
    (tmp_path / "resolved").write_text("seed: 1\n")
    script = script.replace(CONFIG_FILE, str(tmp_path / "resolved"))
    run = tmp_path / "a run" / "trial0"
    subprocess.run([shell, option, script, "prepare", str(run)], check=True, env={"HOSTNAME": "pod-0", "PATH": "/bin"})
    assert [path.name for path in run.iterdir()] == ["config.yaml"]
    assert (run / "config.yaml").read_text() == "seed: 1\n"


def test_the_job_never_retries_and_marks_disruptions() -> None:
    spec = made("Job")["spec"]
    assert (spec["backoffLimit"], spec["completionMode"], spec["template"]["spec"]["restartPolicy"]) == (
        0,
        "Indexed",
        "Never",
    )
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


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
    (server, _) = pods(servers__resources={"claims": [{"name": "gpu"}]})
    assert server["containers"][0]["resources"]["claims"] == [{"name": "gpu"}]
    assert "limits" not in server["containers"][0]["resources"]


def test_the_init_container_has_the_trainers_cpu_and_memory() -> None:
    limits = {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": 1}
    (_, trainer) = pods(trainer__resources={"limits": limits})
    assert trainer["initContainers"][0]["resources"] == {"limits": {"cpu": "4", "memory": "16Gi"}}
    (_, trainer) = pods()
    assert trainer["initContainers"][0]["resources"] == {"requests": {"cpu": "3", "memory": "24Gi"}}


def test_user_and_groups_can_be_left_out() -> None:
    (server, _) = pods(servers__podSecurity={"runAsUser": None, "runAsGroup": None, "fsGroup": None})
    assert server["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    (server, _) = pods(servers__podSecurity={"runAsUser": 2000, "supplementalGroups": [7]})
    context = server["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["supplementalGroups"]) == (2000, 1000, [7])


def test_grace_periods_and_the_startup_time_are_those_of_the_spec() -> None:
    (server, trainer) = pods(
        servers__terminationGracePeriodSeconds=30,
        servers__startupSeconds=600,
        trainer__terminationGracePeriodSeconds=900,
    )
    assert server["terminationGracePeriodSeconds"] == 30
    assert server["containers"][0]["startupProbe"]["failureThreshold"] == 120
    assert trainer["terminationGracePeriodSeconds"] == 900
    assert env_of(trainer)["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "880"


def test_servers_that_are_not_ready_can_be_evicted() -> None:
    budget = made("PodDisruptionBudget")["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")


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


def test_only_the_servers_index_is_expanded_in_arguments() -> None:
    (server, _) = pods(servers__args={"chat_template": "$(HOME)"})
    command = server["containers"][0]["command"]
    assert command[command.index("--index") + 1] == "$(AREAL_SERVER_INDEX)"
    assert command[command.index("--args") + 1] == '{"chat_template": "$$(HOME)"}'


def test_the_volume_is_mounted_at_the_file_root() -> None:
    for fileroot, path in (("runs", "/opt/areal/runs"), ("/data/runs", "/data/runs")):
        (server, trainer) = pods(config__cluster__fileroot=fileroot)
        for pod in (server, trainer):
            mounted = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
            assert mounted["areal-run"] == path
        assert env_of(trainer)[names.RUN_DIR] == f"{path}/case/trial0"


def test_pods_share_a_node_if_only_one_node_can_mount_the_volume() -> None:
    for pod in pods(storage__accessModes=["ReadWriteOnce"]):
        (term,) = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert term["topologyKey"] == "kubernetes.io/hostname"
    for pod in pods(servers__device="cpu", trainer__device="cpu"):
        assert "affinity" not in pod


def test_pods_on_cuda_are_packed_and_servers_on_cpus_are_spread() -> None:
    for pod in pods():
        (term,) = pod["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
        assert term["podAffinityTerm"] == {
            "labelSelector": {"matchLabels": resource_names.labels("case")},
            "topologyKey": "kubernetes.io/hostname",
        }
    labels = resource_names.component_labels("case", resource_names.SERVER)
    for device, counted in (("cuda", False), ("cpu", True)):
        (server, _) = pods(servers__device=device, trainer__device=device)
        (constraint,) = server["topologySpreadConstraints"]  # without one the scheduler spreads a StatefulSet's pods
        assert (constraint["labelSelector"]["matchLabels"].items() <= labels.items()) is counted


def test_the_probes_follow_the_time_limits_of_the_configuration() -> None:
    for device, failures in (("cuda", 60), ("cpu", 10)):
        (server, _) = pods(servers__device=device, trainer__device=device)
        probes = server["containers"][0]
        assert (probes["livenessProbe"]["periodSeconds"], probes["livenessProbe"]["failureThreshold"]) == (30, failures)
        assert probes["startupProbe"]["failureThreshold"] == 720
    (server, _) = pods(config__rollout__weight_load_timeout=3000)
    assert server["containers"][0]["livenessProbe"]["failureThreshold"] == 100


def test_both_ends_of_a_broadcast_have_the_same_nccl_settings() -> None:
    server, trainer = pods()
    for name in ("NCCL_CUMEM_ENABLE", "NCCL_NVLS_ENABLE"):
        assert env_of(server)[name] == env_of(trainer)[name] == "0"


def test_the_progress_token_is_for_this_experiment_alone() -> None:
    (_, pod) = pods()
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "areal-progress"]
    (source,) = volume["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == "progress.areal.dev/uid-1"
    env = env_of(pod)
    assert env[names.PROGRESS_URL] == "http://operator:8080/v1/namespaces/ns/experiments/case/progress"
    assert env[names.PROGRESS_TOKEN_FILE] == "/var/run/areal/token"


def test_a_retained_volume_claim_has_no_owner() -> None:
    assert "ownerReferences" not in made("PersistentVolumeClaim")["metadata"]
    assert made("PersistentVolumeClaim", storage__whenDeleted="Delete")["metadata"]["ownerReferences"]


def test_only_pods_of_the_experiment_reach_its_pods() -> None:
    spec = made("NetworkPolicy")["spec"]
    assert spec["ingress"] == [{"from": [{"podSelector": {"matchLabels": resource_names.labels("case")}}]}]


def test_metrics_readers_reach_only_the_servers_port() -> None:
    text = '[{"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}]'
    settings = Settings.from_env({"AREAL_METRICS_FROM": text})
    build = Build(operator_objects.experiment(), "ns", "uid", 1, "key", settings)
    _, scraping = network_policy(build)["spec"]["ingress"]
    assert scraping == {"from": json.loads(text), "ports": [{"protocol": "TCP", "port": resource_names.SERVER_PORT}]}


@pytest.mark.parametrize("text", ["{", "{}", "[{}]", '["monitoring"]', '[{"pods": {}}]'])
def test_invalid_network_policy_peers_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"AREAL_METRICS_FROM is .*; set a JSON list of a NetworkPolicy's peers"):
        Settings.from_env({"AREAL_METRICS_FROM": text})


def test_names_stay_within_63_characters() -> None:
    name = "a" * 40
    assert len(f"{resource_names.trainer_job(name, 9999)}-99-abcde") <= 63
    assert len(resource_names.config_map(name, "0123456789")) <= 63


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


def test_an_image_comes_from_the_spec_or_the_settings_or_is_an_error() -> None:
    settings = Settings.from_env({"AREAL_SERVER_IMAGE_CPU": "cpu:1"})
    assert settings.image("server", "cpu", None) == "cpu:1"
    assert settings.image("server", "cpu", "mine") == "mine"
    with pytest.raises(ValueError, match=r"trainer\.image is not set .*AREAL_TRAINER_IMAGE of the operator"):
        settings.image("trainer", "cuda", None)


def test_pods_log_in_the_operators_format(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(names.LOG_FORMAT not in env_of(pod) for pod in pods())
    monkeypatch.setattr(operator_objects, "SETTINGS", replace(operator_objects.SETTINGS, json_logs=True))
    assert all(env_of(pod)[names.LOG_FORMAT] == "json" for pod in pods())
    assert Settings.from_env({"AREAL_LOG_FORMAT": "json"}).json_logs


def test_children_are_owned_and_carry_the_labels() -> None:
    plan = decide(state())
    for obj in plan.objects:
        assert obj["metadata"]["labels"][resource_names.EXPERIMENT] == "case"
        if obj["kind"] != "PersistentVolumeClaim":
            assert obj["metadata"]["ownerReferences"][0]["uid"] == "uid-1"
            assert "blockOwnerDeletion" not in obj["metadata"]["ownerReferences"][0]
    assert len(set(named(plan))) == len(plan.objects)


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
