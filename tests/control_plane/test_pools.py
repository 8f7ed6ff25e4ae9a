"""``servers.pools`` on a real API server: pods are played."""

from __future__ import annotations

import pytest

from hack.testbed.experiments import Experiment
from hack.testbed.kube_api import Refused

POOLS = [
    {"name": "big", "replicas": 2, "args": {"log_level": "info"}, "podAnnotations": {"a": "b"}},
    {"name": "wide", "tensorParallel": 2, "nodesPerServer": 2},
]


def test_servers_of_all_pools_run_and_are_counted(experiment: Experiment) -> None:
    namespace = experiment.namespace
    experiment.apply(servers__replicas=1, servers__pools=POOLS)
    experiment.until_phase("Running")
    status = experiment.until(lambda now: now["servers"]["summary"] == "4/4", "all servers")
    assert status["servers"]["pools"] == [
        {"name": "big", "ready": 2, "desired": 2},
        {"name": "wide", "ready": 1, "desired": 1},
    ]
    servers = [name for name in namespace.names("Pod") if not name.startswith("exp-trainer")]
    assert servers == ["exp-pool-big-0", "exp-pool-big-1", "exp-pool-wide-0", "exp-pool-wide-1", "exp-server-0"]
    scale = namespace.api.get("GRPOExperiment", namespace.name, "exp/scale") or {}
    assert scale["spec"]["replicas"] == 1
    selected = scale["status"]["selector"]
    assert "!areal.dev/pool" in selected

    namespace.api.patch("GRPOExperiment", namespace.name, "exp", {"spec": {"replicas": 2}}, "scale")
    experiment.until(lambda now: now["servers"]["summary"] == "5/5", "one more of servers.replicas")
    experiment.edit(runPolicy__suspend=True)
    experiment.until_phase("Suspended")
    assert namespace.names("StatefulSet") == []


def test_pools_do_not_change_during_a_run(experiment: Experiment) -> None:
    experiment.apply(servers__replicas=1, servers__pools=POOLS[:1])
    experiment.until_phase("Running")
    with pytest.raises(Refused, match=r"servers\.pools of a run that has started does not change"):
        experiment.edit(servers__pools=[{**POOLS[0], "replicas": 3}])
    with pytest.raises(Refused, match=r"servers\.pools of a run that has started does not change"):
        experiment.edit(servers__pools=None)
    experiment.edit(servers__replicas=2)
