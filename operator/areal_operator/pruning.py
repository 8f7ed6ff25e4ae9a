"""Which objects of an experiment are no longer wanted. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from areal_api import conditions, resource_names
from areal_api.status import TERMINAL_PHASES, ExperimentStatus
from areal_operator import status as report
from areal_operator.manifests import pod_groups
from areal_operator.manifests.base import Manifest
from areal_operator.observed import Object, is_active, is_finished, is_terminating, label
from areal_operator.plan_inputs import PlanInputs
from areal_operator.queueing import kueue

# The others stay until the garbage collector deletes them.
PRUNED_KINDS = ("StatefulSet", "PodDisruptionBudget", "Service", "Job", *pod_groups.KINDS)


def to_prune(
    inputs: PlanInputs, objects: Iterable[Manifest], *, kept: Collection[str] = ()
) -> tuple[tuple[str, str], ...]:
    """Children that are no longer desired. The last two finished Jobs stay, for the logs of their pods.

    ``kept``: names of the Workloads of borrowed servers that stay although they are not applied.

    The trainer's Service stays too: pods of an attempt that began before an edit of the spec may need it.
    """
    desired = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in objects}
    name, attempt = inputs.state.name, inputs.status.attempt
    current = resource_names.trainer_job(name, attempt)
    last = (current, resource_names.trainer_job(name, attempt - 1))
    result: list[tuple[str, str]] = []
    for kind, children in inputs.observed.objects.items():
        for obj in children:
            key = (kind, str(obj["metadata"]["name"]))
            if kind == kueue.WORKLOAD and key not in desired and key[1] not in kept and _is_unused(inputs, obj):
                result.append(key)
            if kind not in PRUNED_KINDS or key in desired or is_terminating(obj):
                continue
            if kind == "Job" and key[1] in last and is_finished(obj):
                continue
            if key == ("Service", resource_names.trainer(name)):
                continue
            if key == ("Job", current) and _keeps_job(inputs):
                continue
            result.append(key)
    return tuple(result)


def _is_unused(inputs: PlanInputs, workload: Object) -> bool:
    """Whether a Workload is that of a borrowed server, and needed by no pod any more."""
    number = label(workload, resource_names.BORROWED)
    if number is None or is_terminating(workload):
        return False
    if inputs.gate.queue is None and inputs.status.phase not in TERMINAL_PHASES:
        return True  # its pods need no quota
    pods = inputs.observed.pods(resource_names.SERVER)
    active = any(label(pod, resource_names.BORROWED) == number and is_active(pod) for pod in pods)
    return not active and inputs.observed.get("StatefulSet", workload["metadata"]["name"]) is None


def _keeps_job(inputs: PlanInputs) -> bool:
    suspended = inputs.spec.run_policy.suspend or is_suspending(inputs.status) or not inputs.gate.open
    return inputs.status.phase in ("Starting", "Running") and not suspended


def is_suspending(status: ExperimentStatus) -> bool:
    """Whether a suspension has begun, which then completes."""
    condition = report.find(status.conditions, conditions.SUSPENDED)
    return condition is not None and condition.reason == conditions.SUSPENDING
