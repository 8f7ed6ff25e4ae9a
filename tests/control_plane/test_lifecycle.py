"""The life of an experiment on a real API server, controller manager and scheduler."""

from __future__ import annotations

from support.experiments import Experiment
from support.fake_kubelet import end
from support.kube_api import eventually


def test_an_experiment_runs_to_its_end(experiment: Experiment) -> None:
    namespace = experiment.namespace
    experiment.apply(servers__replicas=2)
    status = experiment.until_phase("Running")
    status = experiment.until(lambda now: now["servers"]["ready"] == 2, "two servers")
    assert (status["attempt"], status["servers"]["summary"]) == (1, "2/2")
    assert experiment.condition("StorageReady")["reason"] == "Bound"
    namespace.behave("trainer", end(0))
    status = experiment.until_phase("Succeeded")
    assert status["completionTime"]
    eventually(lambda: not namespace.names("StatefulSet"), "the servers are freed")
    eventually(
        lambda: [p for p in namespace.names("Pod") if "trainer" in p] == namespace.names("Pod"), "only the trainer"
    )
    assert len(namespace.names("Pod")) == 1
    assert {"Started", "Running", "Succeeded"} <= {event["reason"] for event in namespace.list("Event")}
