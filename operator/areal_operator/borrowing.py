"""Servers above ``servers.autoscale.min``: which of them a run has, and which may have pods. Pure.

Each is a StatefulSet, and in a queue of Kueue also a Workload, so that any of them can be taken back. Kueue evicts a
server on its own: its pods are removed at once, the quota is handed back when they have ended, and the Workload waits
again. A server that is no longer wanted has no StatefulSet at once, and no Workload once its pods have ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from areal_api import resource_names
from areal_api.experiment import GRPOExperiment
from areal_operator import status as report
from areal_operator.manifests import servers as server_manifests
from areal_operator.manifests.base import Build, Manifest
from areal_operator.observed import (
    Object,
    annotation,
    condition_of,
    has_condition,
    is_active,
    is_ready,
    is_terminating,
    label,
)
from areal_operator.plan_inputs import PlanInputs
from areal_operator.queueing import kueue
from areal_operator.queueing.gate import has_quota, priority_of
from areal_operator.queueing.placement import flavors_of, placement_of
from areal_operator.queueing.report import Report
from areal_operator.queueing.workload import GANG, Priority, borrowed_workloads


@dataclass(frozen=True)
class Borrowing:
    """The borrowed servers of a run, by number: those of the others go from 0 to ``servers.autoscale.min`` - 1."""

    numbers: tuple[int, ...] = ()  # wanted
    placed: Mapping[int, GRPOExperiment] = field(default_factory=dict)  # may have pods: the experiment as they run
    to_apply: tuple[Manifest, ...] = ()  # Workloads without quota
    kept: frozenset[str] = frozenset()  # names of the Workloads that are not deleted
    reports: Mapping[int, Report] = field(default_factory=dict)  # to Kueue
    waits: str = ""  # why one may not have pods: the first that was evicted, else the first that waits
    unwatched: bool = False  # it waits for an object that is not watched

    def manifests(self, build: Build) -> list[Manifest]:
        """The StatefulSets, and the Workloads that are to be applied."""
        sets = [
            server_manifests.borrowed_set(replace(build, experiment=experiment), number)
            for number, experiment in self.placed.items()
        ]
        return [*sets, *self.to_apply]


@dataclass(frozen=True)
class _Seen:
    """What exists of borrowed servers, by number."""

    pods: Mapping[int, list[Object]]
    sets: frozenset[int]
    workloads: Mapping[int, Object]


def borrowing(inputs: PlanInputs, *, servers: int) -> Borrowing:
    """The borrowed servers of a run that should have ``servers`` servers in all.

    Those that run come before those that wait, and among these the lowest numbers.
    """
    scale, nodes = inputs.spec.servers.autoscale, inputs.spec.servers.nodes_per_server
    if scale is None:
        return Borrowing()
    seen = _seen(inputs)

    def rank(number: int) -> tuple[bool, bool, bool, int]:
        workload = seen.workloads.get(number)
        refused = inputs.gate.queue is not None and not (workload is not None and _is_admitted(workload))
        exists = number in seen.sets or workload is not None
        return refused, not is_scheduled(seen.pods.get(number, []), nodes=nodes), not exists, number

    possible = range(scale.min, min(scale.max, max(scale.min, inputs.addressed())))
    numbers = tuple(sorted(sorted(possible, key=rank)[: max(0, servers - scale.min)]))
    if inputs.gate.queue is None:
        return Borrowing(numbers, dict.fromkeys(numbers, inputs.state.experiment))
    return _queued(inputs, numbers, seen)


def is_scheduled(pods: list[Object], *, nodes: int) -> bool:
    """Whether all pods of a server have a node."""
    return sum(has_condition(pod, "PodScheduled") and not is_terminating(pod) for pod in pods) >= nodes


def pods_by_server(inputs: PlanInputs) -> dict[int, list[Object]]:
    """The pods of borrowed servers."""
    nodes = inputs.spec.servers.nodes_per_server
    result: dict[int, list[Object]] = {}
    for pod in inputs.observed.pods(resource_names.SERVER):
        if label(pod, resource_names.BORROWED) is not None:
            result.setdefault(report.ordinal(pod) // nodes, []).append(pod)
    return result


def _seen(inputs: PlanInputs) -> _Seen:
    def numbered(kind: str) -> dict[int, Object]:
        found = {label(obj, resource_names.BORROWED): obj for obj in inputs.observed.objects.get(kind, ())}
        return {int(text): obj for text, obj in found.items() if text and text.isascii() and text.isdecimal()}

    sets = {number for number, obj in numbered("StatefulSet").items() if not is_terminating(obj)}
    return _Seen(pods_by_server(inputs), frozenset(sets), numbered(kueue.WORKLOAD))


@dataclass(frozen=True)
class _Turn:
    """What becomes of one borrowed server in a queue."""

    applies: bool = False  # its Workload is to be applied
    keeps: bool = True  # its Workload is not deleted
    placed: GRPOExperiment | None = None  # may have pods
    report: Report | None = None  # to Kueue
    waits: str = ""
    unwatched: bool = False


def _queued(inputs: PlanInputs, numbers: tuple[int, ...], seen: _Seen) -> Borrowing:
    """Of a run in a queue: a server may have pods while its Workload is admitted."""
    queue, priority = inputs.gate.queue or "", _priority(inputs)
    build = replace(inputs.build(inputs.status.attempt), experiment=inputs.requested)
    wanted = borrowed_workloads(build, numbers, queue, priority=priority)
    turns = {number: _turn(inputs, number, wanted[number], seen, queue, priority) for number in numbers}
    waiting = [number for number, turn in turns.items() if turn.waits]
    evicted = [number for number in waiting if _is_evicted(seen.workloads.get(number))]
    first = next(iter([*evicted, *waiting]), None)
    return Borrowing(
        numbers,
        placed={number: turn.placed for number, turn in turns.items() if turn.placed is not None},
        to_apply=tuple(wanted[number] for number, turn in turns.items() if turn.applies),
        kept=frozenset(wanted[number]["metadata"]["name"] for number, turn in turns.items() if turn.keeps),
        reports={number: turn.report for number, turn in turns.items() if turn.report is not None},
        waits="" if first is None else f"server {first}: {turns[first].waits}",
        unwatched=any(turn.unwatched for turn in turns.values()),
    )


def _turn(
    inputs: PlanInputs, number: int, manifest: Manifest, seen: _Seen, queue: str, priority: Priority | None
) -> _Turn:
    existing, name = seen.workloads.get(number), manifest["metadata"]["name"]
    if existing is None or (not is_terminating(existing) and _waits_for_quota(existing)):
        if priority is not None and priority.value is None:
            text = f"{priority.kind} {priority.name} does not exist; create it, or correct the name"
            return _Turn(waits=text, unwatched=True)
        return _Turn(applies=True, waits=_why_pending(queue, existing))
    changed = annotation(existing, GANG) != manifest["metadata"]["annotations"][GANG]
    if is_terminating(existing) or not has_quota(existing) or changed:
        return _Turn(keeps=False, waits=f"Workload {name} is being replaced")
    pods = [pod for pod in seen.pods.get(number, ()) if is_active(pod)]
    if _is_evicted(existing):
        ended = not pods and number not in seen.sets
        handed = Report(hand_back=True) if ended else None
        return _Turn(report=handed, waits=f"evicted from queue {queue}: {_text(existing, kueue.EVICTED)}")
    if not has_condition(existing, kueue.ADMITTED):
        return _Turn(waits=f"queue {queue}: quota is reserved, admission checks are open")
    missing = sorted(flavors_of(existing) - set(inputs.observed.kueue.flavors))
    if missing:
        text = f"ResourceFlavor {missing[0]}, which Kueue has assigned, cannot be read; create it again"
        return _Turn(waits=text, unwatched=True)
    ready = sum(is_ready(pod) for pod in pods) >= inputs.spec.servers.nodes_per_server
    placed = placement_of(existing, inputs.observed.kueue.flavors).placed(inputs.requested)
    return _Turn(placed=placed, report=Report(pods_ready=ready))


def _is_admitted(workload: Object) -> bool:
    gone = _is_evicted(workload) or is_terminating(workload)
    return has_quota(workload) and has_condition(workload, kueue.ADMITTED) and not gone


def _is_evicted(workload: Object | None) -> bool:
    """Whether a Workload is being taken back: it was evicted, and holds its quota until its pods have ended."""
    return workload is not None and has_quota(workload) and has_condition(workload, kueue.EVICTED)


def _waits_for_quota(workload: Object) -> bool:
    return not has_quota(workload) and not has_condition(workload, kueue.FINISHED)


def _priority(inputs: PlanInputs) -> Priority | None:
    """That of ``servers.autoscale``, else that of the experiment."""
    name = inputs.spec.servers.autoscale.priority_class_name
    if name is not None:
        return Priority(kueue.POD_PRIORITY_CLASS, name, inputs.observed.kueue.borrowed_priority)
    return priority_of(inputs.state.experiment.metadata.labels, inputs.observed)


def _why_pending(queue: str, existing: Object | None) -> str:
    if existing is not None and (existing.get("spec") or {}).get("active") is False:
        name = existing["metadata"]["name"]
        return f"queue {queue}: Workload {name} is deactivated; set its spec.active to true to queue it again"
    text = "" if existing is None else _text(existing, kueue.QUOTA_RESERVED)
    return f"queue {queue}: {text or 'Kueue has not looked at it yet'}"


def _text(workload: Object, kind: str) -> str:
    """Kueue's message, or its reason."""
    found = condition_of(workload, kind) or {}
    return str(found.get("message") or found.get("reason") or "")
