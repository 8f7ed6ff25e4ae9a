"""Agents and tools of a run on a real API server: created, edited, crashing, suspended and deleted."""

from __future__ import annotations

from typing import Any

from hack.testbed.experiments import Experiment
from hack.testbed.fake_kubelet import end, hang, run
from hack.testbed.kube_api import eventually

ARCHIVE = {"configMap": "exp-code-0123456789", "sha256": "b" * 64}
AGENTS: dict[str, Any] = {
    "config.rollout.agent.mode": "online",
    "agents": [{"name": "solver", "image": "solver:1", "replicas": 2}, {"name": "critic", "image": "critic:1"}],
    "tools": [{"name": "python", "image": "python:1"}],
    "gateway.allowFrom": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
}
CRASH = hang(
    "CrashLoopBackOff",
    "back-off 40s restarting failed container",
    restarts=3,
    last={"terminated": {"exitCode": 1, "reason": "Error", "message": "KeyError: 'answer'"}},
)


def agents_run(experiment: Experiment, summary: str) -> None:
    experiment.until(
        lambda now: (now.get("agents") or {}).get("summary") == summary, f"{summary} pods of agents and tools"
    )


def test_agents_start_with_the_trainer_are_edited_suspended_and_deleted(experiment: Experiment) -> None:
    namespace = experiment.namespace
    experiment.changes = dict(AGENTS)
    experiment.apply()
    agents_run(experiment, "4/4")
    assert experiment.until_reason("AgentsReady", "Ready")["status"] == "True"
    assert {"exp-agent-critic-0", "exp-agent-solver-0", "exp-agent-solver-1", "exp-tool-python-0"} <= set(
        namespace.names("Pod")
    )
    assert {"exp-gateway", "exp-tool-python"} <= set(namespace.names("Service"))
    assert namespace.names("NetworkPolicy") == ["exp-agents", "exp-gateway", "exp-run", "exp-tools"]
    assert any(name.endswith("-gateway-api-key") for name in namespace.names("Secret"))

    experiment.edit(agents=[{"name": "solver", "image": "solver:2", "replicas": 1}])
    eventually(lambda: "exp-agent-critic" not in namespace.names("StatefulSet"), "the removed agent is deleted")
    agents_run(experiment, "2/2")
    eventually(
        lambda: (
            [
                pod["spec"]["containers"][0]["image"]
                for pod in namespace.list("Pod")
                if pod["metadata"]["name"].startswith("exp-agent-")
            ]
            == ["solver:2"]
        ),
        "the agent has its new image",
    )

    experiment.edit(runPolicy__suspend=True)
    experiment.until_phase("Suspended")
    assert namespace.names("Pod") == []
    experiment.edit(runPolicy__suspend=False)
    agents_run(experiment, "2/2")

    namespace.behave("trainer", end(0))
    experiment.until_phase("Succeeded")
    eventually(lambda: not namespace.names("StatefulSet"), "agents and tools end with the run")
    assert experiment.condition("AgentsReady")["reason"] == "Finished"
    experiment.delete()
    kinds = ("Pod", "Service", "Secret", "NetworkPolicy")
    eventually(lambda: not any(namespace.names(kind) for kind in kinds), "everything of them is deleted")


def test_a_crashing_agent_is_reported_and_the_run_continues(experiment: Experiment) -> None:
    experiment.namespace.behave("agent", CRASH)
    experiment.changes = dict(AGENTS)
    experiment.apply()
    condition = experiment.until_reason("AgentsReady", "CrashLoop")
    assert "exit status 1: KeyError: 'answer'; it keeps crashing (3 restarts)" in condition["message"]
    status = experiment.until(lambda now: now["agents"]["restarts"] == 9, "the restarts of three pods")
    assert (status["phase"], status["agents"]["summary"]) == ("Running", "1/4")
    assert status["message"] == condition["message"]
    eventually(lambda: experiment.namespace.events("CrashLoop"), "an Event names it")
    experiment.namespace.behave("agent", run)
    agents_run(experiment, "4/4")
    experiment.until_reason("AgentsReady", "Ready")


def test_code_is_prepared_in_pods_of_agents_and_tools_and_a_change_replaces_them(experiment: Experiment) -> None:
    namespace = experiment.namespace
    program = {"command": ["python3", "-m", "solver"], "code": True}
    experiment.changes = {
        **AGENTS,
        "agents": [{"name": "solver", **program}, {"name": "critic", "image": "critic:1"}],
        "tools": [{"name": "python", "image": "python:1", **program}],
        "code": {"archive": ARCHIVE},
    }
    experiment.apply()
    agents_run(experiment, "3/3")

    def prepared(sha256: str) -> list[str]:
        return [
            pod["metadata"]["name"]
            for pod in sorted(namespace.list("Pod"), key=lambda pod: str(pod["metadata"]["name"]))
            if pod["metadata"]["name"].startswith(("exp-agent-", "exp-tool-"))
            and sha256 in str(pod["spec"].get("initContainers"))
        ]

    assert prepared("b" * 64) == ["exp-agent-solver-0", "exp-tool-python-0"]
    experiment.edit(code={"archive": {**ARCHIVE, "sha256": "c" * 64}})
    eventually(lambda: len(prepared("c" * 64)) == 2, "the pods have the new code")
    agents_run(experiment, "3/3")


def test_code_that_cannot_be_fetched_is_reported_with_its_sentence(experiment: Experiment) -> None:
    line = "error: code.archive: ConfigMap exp-code-0123456789 has no key code.tar.gz"
    last = {"terminated": {"exitCode": 2, "reason": "Error", "message": line}}
    failing = hang("CrashLoopBackOff", "back-off 10s restarting failed container", restarts=2, last=last)
    experiment.namespace.behave("tool", failing)
    tool = {"name": "python", "command": ["python3", "-m", "tool"], "code": True}
    experiment.changes = {"tools": [tool], "code": {"archive": ARCHIVE}}
    experiment.apply()
    assert line in experiment.until_reason("AgentsReady", "CrashLoop")["message"]
