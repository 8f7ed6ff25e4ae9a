"""``servers.autoscale`` on a real API server: pods are played, and the test sends the trainer's reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hack.testbed.experiments import Experiment
from hack.testbed.kube_api import Object, Refused, eventually
from hack.testbed.operator_process import OperatorProcess
from support.progress import post, token_of, url_of

STEPS_S = 180.0  # enough for the steps that a decision needs: reports reach the status every 3 s


@pytest.fixture
def elastic(experiment: Experiment) -> Experiment:
    experiment.apply(servers__replicas=2, servers__autoscale={"min": 1, "max": 4})
    experiment.until_phase("Running")
    experiment.until(lambda now: now["servers"]["summary"] == "2/2", "two servers")
    return experiment


class Trainer:
    """Reports a step whenever the last one has reached the status."""

    def __init__(self, experiment: Experiment, operator: OperatorProcess) -> None:
        self._experiment = experiment
        self._url, self._token = url_of(experiment, operator), token_of(experiment)
        self._step = 0

    def until(self, done: Callable[[Object], bool], text: str, **shares: float) -> Object:
        """Report steps with these shares until the status is as wanted."""

        def look() -> Object | None:
            status = self._experiment.status
            if status.get("step", 0) >= self._step:
                self._step += 1
                report: dict[str, Any] = {"step": self._step, "serversCurrent": status["servers"]["ready"], **shares}
                assert post(self._url, self._token, report).status_code == 202
            return status if done(status) else None

        return eventually(look, text, STEPS_S)


def replicas(experiment: Experiment) -> dict[str, int]:
    return {one["metadata"]["name"]: one["spec"]["replicas"] for one in experiment.namespace.list("StatefulSet")}


def test_the_number_of_servers_follows_what_the_trainer_reports(elastic: Experiment, operator: OperatorProcess) -> None:
    namespace, trainer = elastic.namespace, Trainer(elastic, operator)
    assert replicas(elastic) == {"exp-server": 1, "exp-borrow-1": 1}
    status = trainer.until(lambda now: now["autoscale"]["servers"] == 4, "more", rolloutWait=0.5, serversIdle=0.0)
    text = "4 servers instead of 2: the trainer waited for rollouts for 50.0% of a step"
    assert (status["autoscale"]["reason"], status["autoscale"]["message"]) == ("TrainerWaits", text)
    elastic.until(lambda now: now["servers"]["summary"] == "4/4", "four servers")
    assert replicas(elastic) == {"exp-server": 1, **{f"exp-borrow-{number}": 1 for number in (1, 2, 3)}}
    assert {f"exp-borrow-{number}-{number}" for number in (1, 2, 3)} <= set(namespace.names("Pod"))
    (event,) = eventually(lambda: namespace.events("Autoscaled"), "an Event explains it")
    assert event["message"] == text
    trainer.until(lambda now: now["autoscale"]["servers"] < 4, "fewer", rolloutWait=0.0, serversIdle=0.9)
    elastic.until(lambda now: now["servers"]["summary"] == "3/3", "three servers")
    assert elastic.status["attempt"] == 1
    assert (elastic.get() or {})["spec"]["servers"]["replicas"] == 2  # the user's object


def test_others_do_not_change_the_number(elastic: Experiment) -> None:
    namespace = elastic.namespace
    with pytest.raises(Refused, match=r"with servers\.autoscale the operator chooses the number of servers"):
        namespace.api.patch("GRPOExperiment", namespace.name, "exp", {"spec": {"replicas": 3}}, "scale")
    with pytest.raises(Refused, match=r"servers\.autoscale\.min of a run that has started does not change"):
        elastic.edit(servers__autoscale__min=2)
    with pytest.raises(Refused, match=r"servers\.autoscale is neither added to a run that has started nor removed"):
        elastic.edit(servers__autoscale=None)
    elastic.edit(servers__autoscale__max=2)


def test_a_lost_borrowed_server_is_replaced_and_the_run_goes_on(elastic: Experiment) -> None:
    namespace = elastic.namespace

    def uid() -> str | None:
        pod = namespace.api.get("Pod", namespace.name, "exp-borrow-1-1")
        return None if pod is None else str(pod["metadata"]["uid"])

    before = uid()
    namespace.api.delete("Pod", namespace.name, "exp-borrow-1-1")
    eventually(lambda: uid() not in (None, before), "another pod")
    elastic.until(lambda now: now["servers"]["summary"] == "2/2", "it is ready")
    assert (elastic.status["attempt"], elastic.condition("ServersReady")["status"]) == (1, "True")


def test_a_run_starts_without_borrowed_servers_that_are_refused(experiment: Experiment) -> None:
    """No pod with a priority class that does not exist is created."""
    scale = {"min": 1, "max": 4, "priorityClassName": "missing"}
    experiment.apply(servers__replicas=2, servers__autoscale=scale)
    experiment.until_phase("Running")
    status = experiment.until(lambda now: now["servers"]["ready"] == 1, "the guaranteed server")
    assert status["servers"]["summary"] == "1/2"
    message = experiment.condition("ServersReady")["message"]
    assert message == "1 of 1 servers are ready, and 0 of 1 borrowed ones"
    assert "exp-borrow-1-1" not in experiment.namespace.names("Pod")
