"""Agents and tools: when they run, what their condition says, and that they never end a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from areal_api.resource_names import PROGRAM, SERVER, TRAINER
from areal_operator.plan import Plan
from support.operator_objects import (
    RUNNING,
    claim,
    condition,
    continued,
    decide,
    exited,
    experiment,
    job,
    later,
    named,
    pod,
    running,
    server_set,
    started,
    state,
)

AGENTS: dict[str, Any] = {
    "config__rollout__agent__mode": "online",
    "agents": [{"name": "solver", "replicas": 2}],
    "tools": [{"name": "python"}],
}


def program(kind: str, name: str, index: int = 0, **status: Any) -> Any:
    made = pod(kind, **status)
    metadata = {**made["metadata"], "name": f"case-{kind}-{name}-{index}"}
    return {**made, "metadata": {**metadata, "labels": {**metadata["labels"], PROGRAM: name}}}


def agent_set(plan: Plan) -> Any:
    [found] = [one for one in plan.objects if one["metadata"]["name"] == "case-agent-solver"]
    return {"kind": "StatefulSet", "metadata": {**found["metadata"], "uid": "agents"}, "status": {}}


def crashing(name: str, restarts: int) -> Any:
    state = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting"}}
    ended = {"terminated": {"exitCode": 1, "message": "KeyError: 'answer'"}}
    container = {"name": "agent", "state": state, "lastState": ended, "restartCount": restarts}
    return program("agent", name, conditions=[], containerStatuses=[container])


def test_online_mode_adds_the_gateway_and_agents_once_the_trainer_runs() -> None:
    first = decide(state(**AGENTS))
    found = named(first)
    assert {"Secret case-uid-1-gateway-api-key", "Service case-gateway", "NetworkPolicy case-gateway"} <= set(found)
    assert {"StatefulSet case-tool-python", "Service case-tool-python", "NetworkPolicy case-tools"} <= set(found)
    assert "StatefulSet case-agent-solver" not in found
    assert condition(first.status, "AgentsReady").reason == "WaitingForTrainer"
    assert "agents" not in first.status.message
    plan = decide(started(**AGENTS), *RUNNING)
    assert "StatefulSet case-agent-solver" in named(plan)
    assert (plan.status.phase, condition(plan.status, "AgentsReady").reason) == ("Running", "Starting")
    ready = (program("agent", "solver", 0), program("agent", "solver", 1), program("tool", "python"))
    plan = decide(running(**AGENTS), *RUNNING, agent_set(plan), *ready)
    assert plan.status.agents is not None
    assert (plan.status.agents.summary, condition(plan.status, "AgentsReady").status) == ("3/3", "True")


def test_agents_stay_while_the_trainer_is_not_ready_and_end_with_its_attempt() -> None:
    begun = running(**AGENTS)
    agents = agent_set(decide(begun, *RUNNING))
    unready = pod(TRAINER, conditions=[{"type": "Ready", "status": "False"}])
    plan = decide(begun, server_set(), claim(), job(1), pod(SERVER), unready, agents)
    assert "StatefulSet case-agent-solver" in named(plan)
    failed = (server_set(), claim(), job(1, "Failed"), pod(SERVER), pod(TRAINER, **exited(1)), agents)
    plan = decide(begun, *failed)
    assert ("StatefulSet", "case-agent-solver") in plan.prune
    plan = decide(continued(begun, plan), *failed, now=later(11))
    assert (plan.status.attempt, ("StatefulSet", "case-agent-solver") in plan.prune) == (2, True)


def test_a_crashing_agent_is_named_and_counted_and_the_run_continues() -> None:
    plan = decide(running(**AGENTS), *RUNNING, crashing("solver", 4), program("agent", "solver", 1))
    assert plan.status.phase == "Running"
    reason = condition(plan.status, "AgentsReady")
    assert (reason.status, reason.reason) == ("False", "CrashLoop")
    assert "agent solver: pod case-agent-solver-0: container agent ended with exit status 1" in reason.message
    assert plan.status.message == reason.message
    assert plan.status.agents is not None
    assert (plan.status.agents.restarts, plan.status.agents.summary) == (4, "1/3")


def test_agents_and_tools_end_with_the_run_and_with_a_suspension() -> None:
    begun = running(**AGENTS)
    agents = agent_set(decide(begun, *RUNNING))
    services = [
        {"kind": "Service", "metadata": {"name": name}} for name in ("case-gateway", "case-tool-python", "case-trainer")
    ]
    plan = decide(begun, server_set(), claim(), job(1, "Complete"), pod(TRAINER, **exited(0)), agents, *services)
    assert set(plan.prune) == {
        ("StatefulSet", "case-server"),
        ("StatefulSet", "case-agent-solver"),
        ("Service", "case-gateway"),
        ("Service", "case-tool-python"),
    }
    assert condition(plan.status, "AgentsReady").reason == "Finished"
    suspended = replace(begun, experiment=experiment(**AGENTS, runPolicy__suspend=True))
    plan = decide(suspended, *RUNNING, agents, program("agent", "solver"))
    assert ("StatefulSet", "case-agent-solver") in plan.prune
    assert "case-agent-solver-0" in plan.status.message
    plan = decide(continued(suspended, plan), claim())
    assert (plan.status.phase, condition(plan.status, "AgentsReady").reason) == ("Suspended", "Suspended")


def test_agents_that_were_removed_from_the_spec_are_deleted() -> None:
    agents = agent_set(decide(running(**AGENTS), *RUNNING))
    plan = decide(running(**{**AGENTS, "agents": []}), *RUNNING, agents)
    assert ("StatefulSet", "case-agent-solver") in plan.prune
