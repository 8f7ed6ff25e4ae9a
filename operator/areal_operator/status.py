"""Conditions and figures of the status: pure functions of what is observed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from areal_api import resource_names
from areal_api.experiment import GRPOExperiment
from areal_api.status import Condition, ExperimentStatus, ServersStatus
from areal_operator.clock import show
from areal_operator.diagnosis import Reason, claim_problem, component_problem
from areal_operator.observed import Observed, is_active, is_ready, is_terminating

ConditionStatus = Literal["True", "False", "Unknown"]
ACCEPTED, STORAGE, SERVERS, TRAINER = "Accepted", "StorageReady", "ServersReady", "TrainerRunning"
SUSPENDED, SUCCEEDED = "Suspended", "Succeeded"
SUSPENDING = "Suspending"
# Written by the other field manager, from what trainers report.
PROGRESS_FIELDS = (
    *("step", "totalSteps", "progress", "version", "reward", "evalReward", "staleness", "tokensPerSecond"),
    *("serversCurrent", "serversBehind"),
)


@dataclass(frozen=True)
class ConditionUpdate:
    """What a condition is to say."""

    type: str
    status: ConditionStatus
    why: Reason


def find(conditions: Sequence[Condition], kind: str) -> Condition | None:
    """A condition by its type."""
    return next((condition for condition in conditions if condition.type == kind), None)


def updated_conditions(
    before: Sequence[Condition], updates: Sequence[ConditionUpdate], *, now: datetime, generation: int
) -> list[Condition]:
    """``before`` with ``updates`` in their places; a transition is when a condition's status changes."""
    result = {condition.type: condition for condition in before}
    for update in updates:
        old = result.get(update.type)
        since = old.last_transition_time if old is not None and old.status == update.status else None
        result[update.type] = Condition(
            type=update.type,
            status=update.status,
            reason=update.why.reason,
            message=update.why.message,
            last_transition_time=since or show(now),
            observed_generation=generation,
        )
    return list(result.values())


def storage(experiment: GRPOExperiment, observed: Observed) -> ConditionUpdate:
    """Whether the volume is bound."""
    claim = observed.get("PersistentVolumeClaim", resource_names.volume_claim(experiment.name))
    why = claim_problem(claim, observed)
    if why is not None:
        return ConditionUpdate(STORAGE, "False", why)
    return ConditionUpdate(STORAGE, "True", Reason("Bound", "the volume is bound"))


def servers(experiment: GRPOExperiment, observed: Observed, *, known: int) -> ConditionUpdate:
    """Whether all servers that are asked for take requests. ``known`` is how many the trainer has addresses of."""
    wanted, pods = experiment.spec.servers.replicas, observed.pods(resource_names.SERVER)
    ready = sum(is_ready(pod) for pod in pods)
    owner = observed.get("StatefulSet", resource_names.servers(experiment.name))
    if wanted > known:
        text = (
            f"{ready} of {wanted} servers are ready; the trainer knows the addresses of {known} until its next "
            "attempt: set servers.maxReplicas before a run that is to grow"
        )
        return ConditionUpdate(SERVERS, "False", Reason("BeyondMaxReplicas", text))
    if ready == wanted and len(pods) == wanted:
        return ConditionUpdate(SERVERS, "True", Reason("Ready", f"{ready} of {wanted} servers are ready"))
    if len(pods) > wanted:
        text = f"{len(pods) - wanted} servers drain; {ready} of {wanted} are ready"
        return ConditionUpdate(SERVERS, "True" if ready >= wanted else "False", Reason("Draining", text))
    problem = component_problem(observed, owner, [pod for pod in pods if not is_ready(pod)])
    if problem is not None:
        return ConditionUpdate(
            SERVERS, "False", Reason(problem.reason, f"{ready} of {wanted} servers are ready; {problem.message}")
        )
    return ConditionUpdate(
        SERVERS, "False", Reason("Starting", f"{ready} of {wanted} servers are ready, others are starting")
    )


def trainer(experiment: GRPOExperiment, observed: Observed, *, attempt: int) -> ConditionUpdate:
    """Whether all pods of the current attempt run."""
    wanted = experiment.spec.trainer.nodes
    pods = [pod for pod in observed.trainer_pods(attempt) if not is_terminating(pod)]
    running = sum(is_ready(pod) for pod in pods)
    if running == wanted:
        return ConditionUpdate(TRAINER, "True", Reason("Running", f"attempt {attempt}: {running} of {wanted} pods run"))
    job = observed.get("Job", resource_names.trainer_job(experiment.name, attempt))
    problem = component_problem(observed, job, pods)
    if problem is not None:
        return ConditionUpdate(TRAINER, "False", Reason(problem.reason, f"attempt {attempt}: {problem.message}"))
    text = f"attempt {attempt}: {running} of {wanted} pods run, others are starting"
    return ConditionUpdate(TRAINER, "False", Reason("Starting", text))


def servers_status(experiment: GRPOExperiment, observed: Observed, *, desired: int) -> ServersStatus:
    """Figures for the columns and for autoscalers. What is more than is wanted drains and takes no requests."""
    pods = [pod for pod in observed.pods(resource_names.SERVER) if is_ready(pod) and not is_terminating(pod)]
    ready = min(len(pods), desired)
    labels = resource_names.component_labels(experiment.name, resource_names.SERVER)
    return ServersStatus(
        ready=ready, desired=desired, summary=f"{ready}/{desired}", selector=resource_names.selector(labels)
    )


def ending_pods(observed: Observed, component: str | None = None) -> list[str]:
    """Names of pods that may still run something."""
    return [str(pod["metadata"]["name"]) for pod in observed.pods(component) if is_active(pod)]


def status_to_write(status: ExperimentStatus) -> dict[str, object]:
    """The status as the operator applies it: without what trainers report."""
    data = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {key: value for key, value in data.items() if key not in PROGRESS_FIELDS}
