"""Whether a queue lets a run have pods, with what reason, and where they run. Pure.

The gate is open while the Workload is admitted and not evicted. Where the decision is unknown, because Kueue cannot be
read, it is frozen: nothing starts, and what runs is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from areal_api import conditions, resource_names
from areal_api.experiment import ExperimentSpec
from areal_operator.diagnosis import Reason
from areal_operator.manifests.base import Build, Manifest
from areal_operator.observed import Object, Observed, annotation, condition_of, has_condition, is_terminating
from areal_operator.queueing import kueue
from areal_operator.queueing.placement import Placement, flavors_of, placement_of
from areal_operator.queueing.workload import GANG, SERVERS, Priority, workload


@dataclass(frozen=True)
class Gate:
    """The decision about a run. Without a queue it is open and has nothing to say."""

    queue: str | None = None
    open: bool = True
    frozen: bool = False
    reason: Reason | None = None  # of the condition Admitted
    placement: Placement = field(default_factory=Placement)
    to_apply: tuple[Manifest, ...] = ()  # the Workload, unless it holds quota
    workload: Object | None = None  # as it exists
    discard: bool = False  # delete the Workload as soon as nothing of the run has pods

    @property
    def holds_quota(self) -> bool:
        """Whether the Workload holds quota, perhaps beyond its eviction."""
        return self.workload is not None and has_quota(self.workload)

    @property
    def must_hand_back(self) -> bool:
        """Whether the Workload was evicted, and holds its quota until its pods have ended."""
        return self.workload is not None and self.holds_quota and has_condition(self.workload, kueue.EVICTED)


def gate_of(build: Build, observed: Observed, *, supported: bool, suspended: bool, labels: Mapping[str, str]) -> Gate:
    """The gate of an experiment that has not ended.

    ``build``: of the experiment as its user wrote it. ``supported``: whether the operator may use Kueue. ``labels``:
    of the experiment. Raises ``ValueError`` for what the queue cannot take.
    """
    _refuse_queued_pods(build.experiment.spec)
    existing = observed.get(kueue.WORKLOAD, resource_names.workload(build.name))
    queue = labels.get(kueue.QUEUE_LABEL)
    if not queue:
        return Gate(workload=existing, discard=existing is not None)
    if suspended:
        return Gate(queue, open=False, workload=existing, discard=existing is not None, reason=_suspended())
    unknown = _unreadable(observed, existing, supported=supported)
    if unknown is not None:
        return Gate(queue, open=False, frozen=True, reason=unknown)
    priority_class = labels.get(kueue.PRIORITY_LABEL)
    if priority_class is not None and observed.kueue.priority is None and not (existing and has_quota(existing)):
        text = f"WorkloadPriorityClass {priority_class} does not exist; create it, or correct the label "
        reason = Reason(conditions.NO_PRIORITY_CLASS, f"{text}{kueue.PRIORITY_LABEL}")
        return Gate(queue, open=False, reason=reason, workload=existing)
    wanted = workload(build, queue, priority=priority_of(labels, observed))
    if existing is None or not has_quota(existing) or has_condition(existing, kueue.FINISHED):
        return _without_quota(queue, existing, wanted, position=observed.kueue.position)
    if annotation(existing, GANG) != wanted["metadata"]["annotations"][GANG]:
        text = "the queue, or what the pods request, was changed: the run stops and waits in its queue again"
        return Gate(queue, open=False, reason=Reason(conditions.GANG_CHANGED, text), workload=existing, discard=True)
    return _with_quota(queue, existing, build, observed)


def priority_of(labels: Mapping[str, str], observed: Observed) -> Priority | None:
    """The priority class that an experiment with these labels names."""
    name = labels.get(kueue.PRIORITY_LABEL)
    return None if name is None else Priority(kueue.PRIORITY_CLASS, name, observed.kueue.priority)


def has_quota(workload: Object) -> bool:
    """Whether quota is reserved for a Workload."""
    return has_condition(workload, kueue.QUOTA_RESERVED) and not has_condition(workload, kueue.FINISHED)


def _without_quota(queue: str, existing: Object | None, wanted: Manifest, *, position: int | None) -> Gate:
    if existing is not None and has_condition(existing, kueue.FINISHED):
        finished = condition_of(existing, kueue.FINISHED) or {}
        text = f"Workload {_name(existing)} was finished by another controller ({finished.get('message')})"
        reason = Reason(conditions.QUEUED, f"{text}: the run waits in its queue again")
        return Gate(queue, open=False, reason=reason, workload=existing, discard=True)
    if existing is not None and is_terminating(existing):
        reason = Reason(conditions.QUEUED, f"Workload {_name(existing)} is being deleted")
        return Gate(queue, open=False, reason=reason, workload=existing)
    return Gate(
        queue, open=False, reason=_why_pending(queue, existing, position), workload=existing, to_apply=(wanted,)
    )


def _with_quota(queue: str, existing: Object, build: Build, observed: Observed) -> Gate:
    evicted = condition_of(existing, kueue.EVICTED) or {}
    if evicted.get("status") == "True":
        reason = _inactive(queue, existing) or _passed_on(queue, evicted)
        return Gate(queue, open=False, workload=existing, reason=reason)
    if not has_condition(existing, kueue.ADMITTED):
        return Gate(queue, open=False, workload=existing, reason=_why_checked(queue, existing))
    missing = sorted(set(flavors_of(existing)) - set(observed.kueue.flavors))
    if missing:
        text = f"ResourceFlavor {missing[0]}, which Kueue has assigned, cannot be read; create it again"
        reason = Reason(conditions.NO_FLAVOR, text)
        return Gate(queue, open=False, frozen=True, workload=existing, reason=reason)
    placement = placement_of(existing, observed.kueue.flavors)
    return Gate(
        queue, workload=existing, placement=placement, reason=_admitted(existing, build.experiment.spec, placement)
    )


def _admitted(existing: Object, spec: ExperimentSpec, placement: Placement) -> Reason:
    cluster_queue = ((existing.get("status") or {}).get("admission") or {}).get("clusterQueue")
    text = f"admitted by ClusterQueue {cluster_queue}"
    granted = placement.counts.get(SERVERS, spec.servers.pods) // spec.servers.nodes_per_server
    wanted = spec.servers.guaranteed
    if granted < wanted:
        text += f" with {granted} of {wanted} servers; the others need another admission, for example after runPolicy."
        text += "suspend was true"
    return Reason(conditions.ADMITTED, text)


def _why_pending(queue: str, existing: Object | None, position: int | None) -> Reason:
    pending = None if existing is None else condition_of(existing, kueue.QUOTA_RESERVED)
    inactive = None if existing is None else _inactive(queue, existing)
    if inactive is not None:
        return inactive
    if pending is None or not pending.get("message"):
        return Reason(conditions.QUEUED, f"queue {queue}: Kueue has not looked at the run yet")
    return _passed_on(queue if position is None else f"{queue}, position {position}", pending)


def _inactive(queue: str, existing: Object) -> Reason | None:
    """How to queue a deactivated Workload again; None if it is active."""
    if (existing.get("spec") or {}).get("active") is not False:
        return None
    text = f"queue {queue}: Workload {_name(existing)} is deactivated; set its spec.active to true to queue it again"
    return Reason("Deactivated", text)


def _why_checked(queue: str, existing: Object) -> Reason:
    checks = (existing.get("status") or {}).get("admissionChecks") or []
    open_checks = [check for check in checks if check.get("state") != "Ready"]
    waits = [" ".join(filter(None, (str(check.get("name")), check.get("message")))) for check in open_checks]
    text = f"quota is reserved, not admitted yet; admission checks: {', '.join(waits) or 'none is open'}"
    return Reason(conditions.QUEUED, f"queue {queue}: {text}")


def _passed_on(queue: str, condition: Object) -> Reason:
    """Kueue's own reason and message."""
    reason = str(condition.get("reason") or conditions.QUEUED)
    return Reason(reason, f"queue {queue}: {condition.get('message') or reason}")


def _suspended() -> Reason:
    return Reason(conditions.SUSPENDED, "runPolicy.suspend is true; the run holds no quota once its pods have ended")


def _unreadable(observed: Observed, existing: Object | None, *, supported: bool) -> Reason | None:
    """Why the decision is unknown. A Workload that was read before stays known while a watch is interrupted."""
    if not supported:
        text = f"the experiment has the label {kueue.QUEUE_LABEL}, and this operator does not use Kueue"
        text += "; set the chart's kueue.enabled, or remove the label"
        return Reason(conditions.KUEUE_DISABLED, text)
    if existing is None and observed.kueue.refused is not None:
        text = f"the experiment has the label {kueue.QUEUE_LABEL}, and Kueue's Workloads cannot be read"
        text += f" ({observed.kueue.refused}); is Kueue 0.17 or newer installed?"
        return Reason(conditions.KUEUE_UNREADABLE, text)
    return None


def _refuse_queued_pods(spec: ExperimentSpec) -> None:
    """Labels of pods that would make Kueue queue each pod on its own: servers and trainer would wait for each other."""
    sections = {**{one.key: one.servers for one in spec.servers.groups}, "trainer": spec.trainer}
    programs = {f"{kind}[{one.name}]": one for kind in ("agents", "tools") for one in getattr(spec, kind)}
    for path, section in {**sections, **programs}.items():
        for key in section.pod_labels:
            if key.startswith(kueue.PREFIX):
                raise ValueError(
                    f"{path}.podLabels has {key}, which would queue single pods; label the experiment itself with "
                    f"{kueue.QUEUE_LABEL} in metadata.labels"
                )


def _name(obj: Object) -> str:
    return str(obj["metadata"]["name"])
