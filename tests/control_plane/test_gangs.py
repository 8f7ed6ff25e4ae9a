"""Kubernetes' own gang scheduling: the real API server, controllers and scheduler with their gates on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from areal_operator.manifests import pod_groups
from hack.cluster.control_plane import ControlPlane
from hack.testbed.control_planes import bare_plane, prepare
from hack.testbed.experiments import Experiment, Namespace
from hack.testbed.fake_kubelet import FakeKubelet, end
from hack.testbed.kube_api import Api, Object, eventually
from hack.testbed.operator_process import OperatorProcess

GROUP = pod_groups.APIS[pod_groups.KUBERNETES].kind
CAPACITY = {"cpu": "4", "memory": "64Gi", "pods": "50"}  # of each of two nodes
CPUS = {"requests": {"cpu": "2"}}  # of each pod: four pods fit into the cluster


@pytest.fixture(scope="module")
def gang_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with bare_plane(tmp_path_factory.mktemp("gangs"), gangs=True) as plane:
        prepare(plane, tmp_path_factory.mktemp("rights"))
        yield plane


@pytest.fixture(scope="module")
def gang_cluster(gang_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    """A cluster with room for four pods and a running operator."""
    api = Api(gang_plane.url, gang_plane.ca, gang_plane.token())
    kubelet = FakeKubelet(api, capacity=CAPACITY)
    operator = OperatorProcess(gang_plane, tmp_path_factory.mktemp("logs"))
    kubelet.start()
    operator.start()
    yield Namespace(api, kubelet, "default")
    operator.stop()
    kubelet.stop()


@pytest.fixture
def cluster(gang_cluster: Namespace, request: pytest.FixtureRequest) -> Iterator[Namespace]:
    name = request.node.name.replace("_", "-")[:50].strip("-")
    gang_cluster.api.create({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}})
    namespace = Namespace(gang_cluster.api, gang_cluster.kubelet, name)
    yield namespace
    for body in namespace.list("GRPOExperiment"):
        namespace.api.delete("GRPOExperiment", name, body["metadata"]["name"])
    # The garbage collector looks for new resource definitions every half minute.
    eventually(lambda: namespace.list("Pod") == [], "the pods of the test have ended", 120.0, pause_s=0.5)


def made(cluster: Namespace, name: str, servers: int = 2) -> Experiment:
    needs = {"servers.replicas": servers, "servers.resources": CPUS, "trainer.resources": CPUS}
    return Experiment(cluster, name, needs).apply()


def placed(cluster: Namespace, name: str) -> list[Object]:
    """The pods of an experiment that hold a place on a node."""
    pods = [pod for pod in cluster.list("Pod") if pod["metadata"]["labels"]["areal.dev/experiment"] == name]
    return [pod for pod in pods if pod["spec"].get("nodeName") and pod["status"].get("phase") != "Succeeded"]


def test_two_experiments_that_fit_alone_never_hold_half_each(cluster: Namespace) -> None:
    """Both are created at once, six pods in all, and four fit."""
    both = [made(cluster, "left"), made(cluster, "right")]
    seen: set[tuple[int, ...]] = set()

    def one_runs() -> Experiment | None:
        seen.add(tuple(len(placed(cluster, one.name)) for one in both))
        return next((one for one in both if one.status.get("phase") == "Running"), None)

    first = eventually(one_runs, "one of them runs", 60.0, pause_s=0.2)
    second = both[1 - both.index(first)]
    waiting = second.until(lambda now: "Insufficient cpu" in now.get("message", ""), "why it waits")
    assert waiting["phase"] == "Starting"
    assert placed(cluster, second.name) == []
    first.delete()
    second.until_phase("Running", 60.0)
    assert all(0 in counts for counts in seen), f"numbers of pods with a node, left and right: {sorted(seen)}"


def test_the_next_attempt_joins_the_servers_and_the_end_leaves_no_group(cluster: Namespace) -> None:
    experiment = made(cluster, "exp", servers=1)
    experiment.until_phase("Running")
    (group,) = cluster.list(GROUP)
    assert group["spec"]["schedulingPolicy"]["gang"] == {"minCount": 2}
    servers = cluster.names("Pod")[0]
    cluster.behave("trainer", end(1))
    experiment.until(lambda now: now["attempt"] == 2, "the second attempt")
    cluster.behave("trainer", lambda pod: None)
    eventually(lambda: len(placed(cluster, "exp")) >= 2, "server and second trainer have a node")
    assert servers in cluster.names("Pod")
    cluster.behave("trainer", end(0))
    experiment.until_phase("Succeeded")
    eventually(lambda: cluster.list(GROUP) == [], "the group is gone")


def test_a_run_with_fewer_servers_than_it_began_with_restarts(cluster: Namespace) -> None:
    experiment = made(cluster, "exp", servers=3)
    experiment.until_phase("Running")
    experiment.edit(servers__replicas=1)
    experiment.until(lambda now: now["servers"]["summary"] == "1/1", "one server is left")
    cluster.behave("trainer", end(1))
    experiment.until(lambda now: now["attempt"] == 2, "the second attempt")
    cluster.behave("trainer", end(0))
    experiment.until_phase("Succeeded")


def test_a_suspended_run_resumes_as_a_group(cluster: Namespace) -> None:
    experiment = made(cluster, "exp", servers=1)
    experiment.until_phase("Running")
    experiment.edit(runPolicy__suspend=True)
    experiment.until_phase("Suspended")
    eventually(lambda: cluster.list(GROUP) == [], "the group is gone")
    experiment.edit(runPolicy__suspend=False)
    experiment.until_phase("Running")
    assert [group["metadata"]["name"] for group in cluster.list(GROUP)] == ["exp-run"]
