"""The servers' StatefulSet and their disruption budget."""

from __future__ import annotations

from areal_api import names, resource_names
from support.operator_manifests import env_of, made, pods


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
    budget = made("PodDisruptionBudget", servers__replicas=2)["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")


def test_only_the_servers_index_is_expanded_in_arguments() -> None:
    (server, _) = pods(servers__args={"chat_template": "$(HOME)"})
    command = server["containers"][0]["command"]
    assert command[command.index("--index") + 1] == "$(AREAL_SERVER_INDEX)"
    assert command[command.index("--args") + 1] == '{"chat_template": "$$(HOME)"}'


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


ON_NODES = {"servers__replicas": 3, "servers__tensorParallel": 16, "servers__nodesPerServer": 2}


def test_a_server_on_several_nodes_is_as_many_pods_with_its_share_of_the_gpus() -> None:
    spec = made("StatefulSet", **ON_NODES)["spec"]
    assert spec["replicas"] == 6
    (container,) = spec["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    command = " ".join(container["command"])
    assert "--tensor-parallel 16 --nodes 2 --leaders case-server-{}.case-server.ns.svc --group-port 30100" in command
    assert "--index $(AREAL_SERVER_INDEX)" in command


def test_the_trainer_addresses_the_first_pod_of_each_server() -> None:
    addresses = env_of(made("Job", **ON_NODES)["spec"]["template"]["spec"])[names.SERVER_ADDRS]
    hosts = [address.partition(".")[0] for address in addresses.split(",")]
    assert hosts == ["case-server-0", "case-server-2", "case-server-4"]


def test_servers_without_the_run_volume_download_weights_and_may_be_on_other_nodes() -> None:
    (server, trainer) = pods(storage={"shared": False, "accessModes": ["ReadWriteOnce"]})
    assert "areal-run" not in str(server)
    assert "requiredDuringSchedulingIgnoredDuringExecution" not in str(server["affinity"])
    assert env_of(trainer)["AREAL_WEIGHTS_URL"] == "http://case-trainer-1-0.case-trainer.ns.svc:8500"
    (shared, other) = pods(storage={"accessModes": ["ReadWriteOnce"]})
    assert "requiredDuringSchedulingIgnoredDuringExecution" in shared["affinity"]["podAffinity"]
    assert "AREAL_WEIGHTS_URL" not in env_of(other)


def test_servers_share_downloaded_models_and_cannot_change_them() -> None:
    (server, trainer) = pods(servers__modelCache={"claimName": "hub"}, config__tokenizer_path="team/tokenizer")
    (prefetch,) = server["initContainers"]
    assert prefetch["command"] == ["python3", "-m", "areal_server.prefetch", "/models", "model", "team/tokenizer"]
    assert {"name": "areal-models", "mountPath": "/models"} in prefetch["volumeMounts"]
    assert "nvidia.com/gpu" not in str(prefetch["resources"])
    (main,) = server["containers"]
    assert {"name": "areal-models", "mountPath": "/models", "readOnly": True} in main["volumeMounts"]
    assert {"name": "areal-models", "persistentVolumeClaim": {"claimName": "hub"}} in server["volumes"]
    assert env_of(server)["HF_HUB_CACHE"] == "/models"
    assert "areal-models" not in str(trainer)
    assert "areal-models" not in str(pods()[0])
