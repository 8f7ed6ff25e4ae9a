"""Pods with a user's additions, and quotas, on a real API server."""

from __future__ import annotations

from hack.testbed.experiments import Experiment
from hack.testbed.fake_kubelet import NODES
from hack.testbed.kube_api import Object, eventually

RACK = "test.areal.dev/rack"


def test_a_run_that_its_namespaces_quota_can_never_hold_gets_no_pods(experiment: Experiment) -> None:
    namespace = experiment.namespace
    hard = {"spec": {"hard": {"requests.cpu": "3"}}}
    namespace.api.create(
        {"kind": "ResourceQuota", "apiVersion": "v1", "metadata": {"name": "team"}, **hard}, namespace.name
    )
    cpus = {"requests": {"cpu": "2"}}
    experiment.apply(servers__resources=cpus, trainer__resources=cpus)
    found = experiment.until_reason("WithinQuota", "QuotaTooSmall")
    assert found["message"].startswith("ResourceQuota team allows 3 requests.cpu, and the run needs 4; raise the quota")
    assert (experiment.status["phase"], experiment.status["message"]) == ("Pending", found["message"])
    assert namespace.list("StatefulSet") == namespace.list("Job") == namespace.list("Pod") == []
    namespace.api.patch("ResourceQuota", namespace.name, "team", {"spec": {"hard": {"requests.cpu": "4"}}})
    experiment.until_phase("Running")


def test_init_containers_sidecars_claims_and_packing_are_accepted_by_the_api_server(experiment: Experiment) -> None:
    """A pod with all of it is created under Pod Security "restricted"; the claim's template does not exist."""
    sidecar = {"name": "proxy", "image": "p", "restartPolicy": "Always", "readinessProbe": {"tcpSocket": {"port": 80}}}
    pull = {"name": "pull", "image": "i", "command": ["true"], "securityContext": {"runAsUser": 2000}}
    experiment.apply(
        servers__initContainers=[pull, sidecar],
        trainer__initContainers=[sidecar],
        servers__resources={"claims": [{"name": "gpu"}]},
        servers__resourceClaims=[{"name": "gpu", "resourceClaimTemplateName": "h200"}],
        packing={"topologyKey": "rack"},
    )
    pods = eventually(lambda: by_component(experiment) if len(by_component(experiment)) == 2 else None, "two pods")
    assert [one["name"] for one in pods["server"]["initContainers"]] == ["pull", "proxy"]
    assert [one["name"] for one in pods["trainer"]["initContainers"]] == ["prepare", "proxy"]
    assert pods["server"]["resourceClaims"] == [{"name": "gpu", "resourceClaimTemplateName": "h200"}]


def by_component(experiment: Experiment) -> dict[str, Object]:
    """The specs of the pods of an experiment with one server and one trainer pod."""
    pods = experiment.namespace.list("Pod")
    return {one["metadata"]["labels"]["areal.dev/component"]: one["spec"] for one in pods}


def test_servers_on_two_nodes_are_scaled_and_counted_as_servers(experiment: Experiment) -> None:
    experiment.apply(servers__replicas=2, servers__maxReplicas=3, servers__tensorParallel=2, servers__nodesPerServer=2)
    experiment.until(lambda now: (now.get("servers") or {}).get("summary") == "2/2", "two servers of four pods")
    servers = [name for name in experiment.namespace.names("Pod") if "-server-" in name]
    assert servers == [f"exp-server-{index}" for index in range(4)]
    experiment.edit(servers__replicas=1)
    experiment.until(lambda now: now["servers"]["summary"] == "1/1", "one server is left")
    eventually(lambda: experiment.namespace.names("Pod")[:2] == ["exp-server-0", "exp-server-1"], "its two pods")
    eventually(lambda: "exp-server-2" not in experiment.namespace.names("Pod"), "the others are gone")


def test_packing_keeps_all_pods_in_one_rack(experiment: Experiment) -> None:
    """Each of the two nodes is a rack; the pods are created at the same time."""
    api = experiment.namespace.api
    for name in NODES:
        api.patch("Node", None, name, {"metadata": {"labels": {RACK: name}}})
    experiment.apply(
        servers__replicas=4, packing={"topologyKey": RACK, "required": True}, storage__accessModes=["ReadWriteMany"]
    )
    experiment.until_phase("Running")
    experiment.until(lambda now: now["servers"]["summary"] == "4/4", "all servers run")
    assert len({pod["spec"]["nodeName"] for pod in experiment.namespace.list("Pod")}) == 1
