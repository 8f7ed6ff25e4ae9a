"""The servers' StatefulSet and their disruption budget."""

from __future__ import annotations

from typing import Any

from areal_api import names, resource_names
from support.operator_manifests import env_of, made, pods
from support.operator_objects import decide, state


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


POOLS = [
    {
        "name": "h100",
        "replicas": 2,
        "tensorParallel": 4,
        "nodeSelector": {"gpu": "h100"},
        "args": {"schedule_policy": "lpm"},
    },
    {"name": "wide", "replicas": 3, "tensorParallel": 16, "nodesPerServer": 2, "image": "other:1"},
]
WITH_POOLS = {"servers__replicas": 2, "servers__nodeSelector": {"gpu": "l40s"}, "servers__pools": POOLS}


def sets(**changes: Any) -> dict[str, Any]:
    found = [one for one in decide(state(**changes)).objects if one["kind"] == "StatefulSet"]
    return {one["metadata"]["name"]: one for one in found}


def test_each_pool_is_a_stateful_set_with_its_settings() -> None:
    made = sets(**WITH_POOLS)
    assert {name: one["spec"]["replicas"] for name, one in made.items()} == {
        "case-server": 2,
        "case-pool-h100": 2,
        "case-pool-wide": 6,
    }
    templates = {name: one["spec"]["template"]["spec"] for name, one in made.items()}
    assert [pod["nodeSelector"]["gpu"] for pod in templates.values()] == ["l40s", "h100", "l40s"]
    containers = [pod["containers"][0] for pod in templates.values()]
    assert [one["resources"]["limits"]["nvidia.com/gpu"] for one in containers] == ["1", "4", "8"]
    assert [one["image"] for one in containers] == ["server:cuda", "server:cuda", "other:1"]
    assert ["--args" in one["command"] for one in containers] == [False, True, False]
    for name, one in made.items():
        selector = one["spec"]["selector"]["matchLabels"]
        assert selector.get(resource_names.POOL) == {"case-pool-h100": "h100", "case-pool-wide": "wide"}.get(name)
        assert selector.items() <= one["spec"]["template"]["metadata"]["labels"].items()
        assert one["spec"]["serviceName"] == "case-server"


def test_no_two_servers_of_a_run_have_the_same_seed() -> None:
    commands = [one["spec"]["template"]["spec"]["containers"][0]["command"] for one in sets(**WITH_POOLS).values()]
    offsets = [int(words[words.index("--seed-offset") + 1]) if "--seed-offset" in words else 0 for words in commands]
    assert offsets == [0, 1024, 2048]


def test_the_trainer_has_the_addresses_of_all_pools() -> None:
    trainer = made("Job", servers__maxReplicas=3, **WITH_POOLS)["spec"]["template"]["spec"]
    hosts = [f"case-server-{i}" for i in range(3)] + ["case-pool-h100-0", "case-pool-h100-1"]
    hosts += [f"case-pool-wide-{i}" for i in (0, 2, 4)]
    assert env_of(trainer)[names.SERVER_ADDRS] == ",".join(f"{host}.case-server.ns.svc:30000" for host in hosts)


def test_pods_of_a_server_of_a_pool_meet_at_its_first_one() -> None:
    server = sets(**WITH_POOLS)["case-pool-wide"]["spec"]["template"]["spec"]["containers"][0]
    command = server["command"]
    assert command[command.index("--leaders") + 1] == "case-pool-wide-{}.case-server.ns.svc"


def test_one_server_and_a_pool_have_a_disruption_budget() -> None:
    assert made("PodDisruptionBudget", servers__pools=[{"name": "a"}])["spec"]["maxUnavailable"] == 1


def test_without_pools_nothing_differs_from_an_empty_list() -> None:
    assert decide(state(servers__pools=[])).objects == decide(state()).objects


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
