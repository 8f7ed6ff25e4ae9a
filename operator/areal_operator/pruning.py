"""Which objects of an experiment are no longer wanted. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from areal_api import conditions, resource_names
from areal_api.status import ExperimentStatus
from areal_operator import status as report
from areal_operator.manifests import pod_groups
from areal_operator.manifests.base import Manifest
from areal_operator.observed import is_finished, is_terminating
from areal_operator.plan_inputs import PlanInputs

# The others stay until the garbage collector deletes them.
PRUNED_KINDS = ("StatefulSet", "PodDisruptionBudget", "Service", "Job", *pod_groups.KINDS)


def to_prune(inputs: PlanInputs, objects: Iterable[Manifest]) -> tuple[tuple[str, str], ...]:
    """Children that are no longer desired. The last two finished Jobs stay, for the logs of their pods.

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


def _keeps_job(inputs: PlanInputs) -> bool:
    suspended = inputs.spec.run_policy.suspend or is_suspending(inputs.status) or not inputs.gate.open
    return inputs.status.phase in ("Starting", "Running") and not suspended


def is_suspending(status: ExperimentStatus) -> bool:
    """Whether a suspension has begun, which then completes."""
    condition = report.find(status.conditions, conditions.SUSPENDED)
    return condition is not None and condition.reason == conditions.SUSPENDING
