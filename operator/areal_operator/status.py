"""Conditions and counters of the status: pure functions of the observed objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from areal_api import conditions, health, resource_names
from areal_api.experiment import GRPOExperiment
from areal_api.servers import ServerGroup
from areal_api.status import Condition, ExperimentStatus, PoolStatus, ServersStatus
from areal_operator.clock import show
from areal_operator.diagnosis import Reason, claim_problem, component_problem
from areal_operator.manifests.shared import created_for, is_created_by_operator
from areal_operator.observed import Object, Observed, is_active, is_ready, is_terminating, label
from areal_operator.outcome import job_nodes, trainer_ended

ConditionStatus = Literal["True", "False", "Unknown"]
# Written by the progress field manager, from trainers' reports.
PROGRESS_FIELDS = (
    *("step", "totalSteps", "progress", "version", "reward", "evalReward", "staleness", "tokensPerSecond"),
    *("serversCurrent", "serversBehind"),
    *("rolloutWait", "serversIdle"),
    *("cacheHitRate", "agentSessions", "agentSessionsLost", "agentErrors"),
    *("healthWarnings", "collapsed", "rollbacks"),
)
HEALTH_FIELDS = ("healthWarnings", "collapsed", "rollbacks")  # those that a condition depends on


@dataclass(frozen=True)
class ConditionUpdate:
    """The new state of a condition."""

    type: str
    status: ConditionStatus
    reason: Reason


def find(current: Sequence[Condition], kind: str) -> Condition | None:
    """A condition by its type."""
    return next((condition for condition in current if condition.type == kind), None)


def updated_conditions(
    before: Sequence[Condition], updates: Sequence[ConditionUpdate], *, now: datetime, generation: int
) -> list[Condition]:
    """``before`` with ``updates``; lastTransitionTime changes only with a condition's status."""
    result = {condition.type: condition for condition in before}
    for update in updates:
        old = result.get(update.type)
        since = old.last_transition_time if old is not None and old.status == update.status else None
        result[update.type] = Condition(
            type=update.type,
            status=update.status,
            reason=update.reason.code,
            message=update.reason.message,
            last_transition_time=since or show(now),
            observed_generation=generation,
        )
    return list(result.values())


def policy_health(status: ExperimentStatus) -> list[ConditionUpdate]:
    """Whether the policy learns without warnings, as the trainer last reported; empty before it did."""
    if status.collapsed is None and status.health_warnings is None:
        return []
    warnings = status.health_warnings or []
    unknown = [name for name in warnings if name not in health.WARNINGS]
    text = "; ".join(filter(None, [health.describe(warnings), ", ".join(unknown)]))
    undone = f"; it was rolled back {status.rollbacks} times" if status.rollbacks else ""
    if status.collapsed:
        text = f"{health.COLLAPSE_MESSAGE}" + (f": {text}" if text else "") + undone
        return [ConditionUpdate(conditions.POLICY_HEALTHY, "False", Reason(conditions.POLICY_COLLAPSED, text))]
    if warnings:
        return [ConditionUpdate(conditions.POLICY_HEALTHY, "False", Reason(conditions.POLICY_WARNINGS, text + undone))]
    text = f"the trainer reports no warnings{undone}"
    return [ConditionUpdate(conditions.POLICY_HEALTHY, "True", Reason(conditions.HEALTHY, text))]


def storage(experiment: GRPOExperiment, observed: Observed, *, uid: str) -> ConditionUpdate:
    """Whether the volume claim is bound."""
    claim = observed.get("PersistentVolumeClaim", resource_names.volume_claim(experiment.name))
    problem = claim_problem(claim, observed)
    if problem is not None or claim is None:
        return ConditionUpdate(conditions.STORAGE_READY, "False", problem or Reason(conditions.CREATING, ""))
    if not is_created_by_operator(claim):
        text = f"PersistentVolumeClaim {claim['metadata']['name']} is bound; the operator did not create it, and "
        text += "neither changes nor deletes it"
        return ConditionUpdate(conditions.STORAGE_READY, "True", Reason(conditions.NOT_OURS, text))
    text = "the volume is bound"
    if experiment.spec.storage.when_deleted == "Delete" and created_for(claim) != uid:
        text += "; an earlier experiment created its claim, so it is kept although storage.whenDeleted is Delete"
    return ConditionUpdate(conditions.STORAGE_READY, "True", Reason(conditions.BOUND, text))


def servers(experiment: GRPOExperiment, observed: Observed, *, addressed: int) -> ConditionUpdate:
    """Whether all desired servers are ready, except borrowed ones; with pools, those of each.

    ``addressed``: number of servers, without those of pools, whose addresses the trainer has.
    """
    groups = experiment.spec.servers.groups
    updates = [_group(experiment, group, observed, addressed=addressed) for group in groups]
    unready = [update for update in updates if update.status != "True"]
    unsettled = [update for update in updates if update.reason.code != conditions.READY]
    worst = [*unready, *unsettled, updates[0]][0]
    texts = [
        update.reason.message if group.pool is None else f"pool {group.pool}: {update.reason.message}"
        for group, update in zip(groups, updates, strict=True)
    ]
    return _servers(worst.status, worst.reason.code, "; ".join(texts))


def _group(experiment: GRPOExperiment, group: ServerGroup, observed: Observed, *, addressed: int) -> ConditionUpdate:
    """Whether the desired servers of one group are ready."""
    spec, pods = group.servers, _pods_of(group, observed)
    borrowed = [pod for pod in pods if label(pod, resource_names.BORROWED) is not None]
    pods = [pod for pod in pods if pod not in borrowed]
    desired, wanted = spec.guaranteed, spec.guaranteed * spec.nodes_per_server
    ready = ready_servers(pods, nodes=spec.nodes_per_server)
    ratio = f"{ready} of {desired} servers are ready"
    if spec.autoscale is not None:
        more = ready_servers(borrowed, nodes=spec.nodes_per_server)
        ratio += f", and {more} of {spec.replicas - desired} borrowed ones"
    if group.pool is None and desired > addressed:
        text = f"{ratio}; the trainer has the addresses of {addressed} until its next attempt: set "
        text += "servers.maxReplicas before starting a run that will be scaled up"
        return _servers("False", conditions.BEYOND_MAX_REPLICAS, text)
    if ready == desired and len(pods) == wanted:
        return _servers("True", conditions.READY, ratio)
    if len(pods) > wanted:
        draining = -(-(len(pods) - wanted) // spec.nodes_per_server)
        text = f"{draining} servers are draining; {ready} of {desired} are ready"
        return _servers("True" if ready >= desired else "False", conditions.DRAINING, text)
    owner = observed.get("StatefulSet", resource_names.pool_servers(experiment.name, group.pool))
    waiting = [pod for pod in pods if not is_ready(pod)]
    problem = component_problem(observed, owner, waiting, missing=wanted - len(pods))
    if problem is not None:
        return _servers("False", problem.code, f"{ratio}; {problem.message}")
    return _servers("False", conditions.STARTING, f"{ratio}, others are starting")


def _pods_of(group: ServerGroup, observed: Observed) -> list[Object]:
    return [pod for pod in observed.pods(resource_names.SERVER) if label(pod, resource_names.POOL) == group.pool]


def trainer(experiment: GRPOExperiment, observed: Observed, *, attempt: int) -> ConditionUpdate:
    """Whether all pods of the current attempt run. The Job has their number: the spec may have been edited."""
    job = observed.get("Job", resource_names.trainer_job(experiment.name, attempt))
    nodes = job_nodes(job, experiment.spec.trainer.nodes)
    pods = [pod for pod in observed.trainer_pods(attempt) if not is_terminating(pod)]
    running = sum(is_ready(pod) and not trainer_ended(pod) for pod in pods)
    if running == nodes:
        return _trainer("True", conditions.RUNNING, f"attempt {attempt}: {running} of {nodes} pods run")
    problem = component_problem(observed, job, pods, missing=nodes - len(pods))
    if problem is not None:
        return _trainer("False", problem.code, f"attempt {attempt}: {problem.message}")
    if job is not None and (job.get("spec") or {}).get("suspend"):
        text = f"attempt {attempt}: another controller has suspended the Job; the operator resumes it"
        return _trainer("False", conditions.STARTING, text)
    return _trainer(
        "False", conditions.STARTING, f"attempt {attempt}: {running} of {nodes} pods run, others are starting"
    )


def servers_status(experiment: GRPOExperiment, observed: Observed, *, wanted: bool) -> ServersStatus:
    """Numbers for the columns and for autoscalers; ``wanted``: whether any servers should run.

    Surplus servers are draining and are not counted as ready.
    """
    counts = [_count(group, observed, wanted=wanted) for group in experiment.spec.servers.groups]
    ready, desired = sum(one.ready for one in counts), sum(one.desired for one in counts)
    selector = resource_names.selector(resource_names.component_labels(experiment.name, resource_names.SERVER))
    pools = counts[1:]
    return ServersStatus(
        ready=ready,
        desired=desired,
        summary=f"{ready}/{desired}",
        selector=f"{selector},!{resource_names.POOL}" if pools else selector,
        pools=pools or None,
    )


def _count(group: ServerGroup, observed: Observed, *, wanted: bool) -> PoolStatus:
    desired = group.servers.replicas if wanted else 0
    ready = min(ready_servers(_pods_of(group, observed), nodes=group.servers.nodes_per_server), desired)
    return PoolStatus(name=group.pool or "", ready=ready, desired=desired)


def pending(status: ExperimentStatus) -> list[str]:
    """Reasons of the conditions that an experiment in progress does not meet."""
    if status.phase not in ("Starting", "Running"):
        return []
    kinds = (conditions.STORAGE_READY, conditions.SERVERS_READY, conditions.TRAINER_RUNNING, conditions.AGENTS_READY)
    found = [find(status.conditions, kind) for kind in kinds]
    return [condition.reason for condition in found if condition is not None and condition.status != "True"]


def ready_servers(pods: Sequence[Object], *, nodes: int) -> int:
    """Servers of which all ``nodes`` pods are ready."""
    ready = Counter(ordinal(pod) // nodes for pod in pods if is_ready(pod))
    return sum(count == nodes for count in ready.values())


def ordinal(pod: Object) -> int:
    """Number of a server's pod."""
    text = label(pod, resource_names.POD_INDEX) or str(pod["metadata"]["name"]).rpartition("-")[2]
    return int(text) if text.isascii() and text.isdecimal() else 0


def active_pods(observed: Observed, component: str | None = None) -> list[str]:
    """Names of pods whose containers may still run."""
    return [str(pod["metadata"]["name"]) for pod in observed.pods(component) if is_active(pod)]


def active_servers(observed: Observed) -> int:
    """Number of pods of servers, without those of pools, whose containers may still run."""
    pods = observed.pods(resource_names.SERVER)
    return sum(is_active(pod) and label(pod, resource_names.POOL) is None for pod in pods)


def status_to_write(status: ExperimentStatus) -> dict[str, object]:
    """The status as the operator applies it: without the fields that trainers report."""
    data = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {key: value for key, value in data.items() if key not in PROGRESS_FIELDS}


def _servers(status: ConditionStatus, reason: str, message: str) -> ConditionUpdate:
    return ConditionUpdate(conditions.SERVERS_READY, status, Reason(reason, message))


def _trainer(status: ConditionStatus, reason: str, message: str) -> ConditionUpdate:
    return ConditionUpdate(conditions.TRAINER_RUNNING, status, Reason(reason, message))
