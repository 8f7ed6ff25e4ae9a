"""Agents and tools of a run: which may run now, whether they do, and how often they were restarted. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from areal_api import conditions, resource_names
from areal_api.agents import AgentPod, ToolSpec
from areal_api.experiment import GRPOExperiment
from areal_api.status import AgentsStatus
from areal_operator.diagnosis import Reason, component_problem
from areal_operator.manifests import agents
from areal_operator.manifests.base import Manifest
from areal_operator.observed import Object, Observed, annotation, container_statuses, is_ready, label
from areal_operator.plan_inputs import PlanInputs
from areal_operator.status import ConditionUpdate


def wanted(inputs: PlanInputs, trainer_update: ConditionUpdate) -> tuple[AgentPod, ...]:
    """Tools, and agents once the trainer runs. They stay while it is not ready, and end with its attempt."""
    spec, attempt = inputs.spec, str(inputs.status.attempt)
    if inputs.status.outcome is not None:
        return tuple(spec.tools)
    started = {
        str(obj["metadata"]["name"])
        for obj in inputs.observed.objects.get("StatefulSet", ())
        if annotation(obj, agents.ATTEMPT) == attempt
    }
    running = trainer_update.status == "True"
    name = inputs.state.name
    return (*spec.tools, *(one for one in spec.agents if running or agents.set_name(name, one) in started))


def manifests(inputs: PlanInputs, programs: Sequence[AgentPod]) -> tuple[Manifest, ...]:
    """The StatefulSets of agents and tools."""
    build = inputs.build(inputs.status.attempt)
    return tuple(agents.program_set(build, one) for one in programs)


def ready(experiment: GRPOExperiment, observed: Observed, *, wanted: Sequence[AgentPod]) -> list[ConditionUpdate]:
    """Whether all pods of agents and tools run; empty without any. ``wanted``: those that may run now."""
    spec = experiment.spec
    if not spec.agents and not spec.tools:
        return []
    pods = _program_pods(observed)
    ratio = (
        f"{sum(is_ready(pod) for pod in pods)} of {sum(one.replicas for one in (*spec.agents, *spec.tools))} pods run"
    )
    for one in wanted:
        owner = observed.get("StatefulSet", agents.set_name(experiment.name, one))
        waiting = [pod for pod in _pods_of(one, pods) if not is_ready(pod)]
        problem = component_problem(observed, owner, waiting, missing=one.replicas - len(_pods_of(one, pods)))
        if problem is not None:
            kind = "tool" if isinstance(one, ToolSpec) else "agent"
            return [
                ConditionUpdate(
                    conditions.AGENTS_READY, "False", Reason(problem.code, f"{kind} {one.name}: {problem.message}")
                )
            ]
    if len(wanted) < len(spec.agents) + len(spec.tools):
        reason = Reason(conditions.WAITING_FOR_TRAINER, f"{ratio}; agents start when the trainer runs")
        return [ConditionUpdate(conditions.AGENTS_READY, "False", reason)]
    if all(sum(is_ready(pod) for pod in _pods_of(one, pods)) >= one.replicas for one in wanted):
        return [ConditionUpdate(conditions.AGENTS_READY, "True", Reason(conditions.READY, ratio))]
    reason = Reason(conditions.STARTING, f"{ratio}, others are starting")
    return [ConditionUpdate(conditions.AGENTS_READY, "False", reason)]


def stopped(experiment: GRPOExperiment, reason: Reason) -> list[ConditionUpdate]:
    """The condition of agents and tools when nothing of the run runs; empty without any."""
    has_any = experiment.spec.agents or experiment.spec.tools
    return [ConditionUpdate(conditions.AGENTS_READY, "False", reason)] if has_any else []


def numbers(experiment: GRPOExperiment, observed: Observed, *, wanted: Sequence[AgentPod]) -> AgentsStatus | None:
    """Numbers of pods of agents and tools; None if the experiment has none."""
    if not experiment.spec.agents and not experiment.spec.tools:
        return None
    pods = _program_pods(observed)
    ready, desired = sum(is_ready(pod) for pod in pods), sum(one.replicas for one in wanted)
    restarts = sum(int(one.get("restartCount") or 0) for pod in pods for one in container_statuses(pod))
    return AgentsStatus(ready=ready, desired=desired, restarts=restarts, summary=f"{ready}/{desired}")


def _pods_of(program: AgentPod, pods: Sequence[Object]) -> list[Object]:
    """The pods of one agent or tool."""
    component = resource_names.TOOL if isinstance(program, ToolSpec) else resource_names.AGENT
    return [
        pod
        for pod in pods
        if label(pod, resource_names.COMPONENT) == component and label(pod, resource_names.PROGRAM) == program.name
    ]


def _program_pods(observed: Observed) -> list[Object]:
    return [*observed.pods(resource_names.AGENT), *observed.pods(resource_names.TOOL)]
