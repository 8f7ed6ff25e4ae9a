"""What the operator reports in the status of a Workload: readiness, freed servers, quota handed back, the end. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from areal_operator.clock import show
from areal_operator.diagnosis import Reason
from areal_operator.observed import Object, condition_of, has_condition
from areal_operator.queueing import kueue
from areal_operator.queueing.gate import has_quota
from areal_operator.queueing.workload import SERVERS

MAX_MESSAGE_LENGTH = 1024  # of a condition, by Kueue's own limit
# Evictions after which a Workload is queued again at once. After others Kueue itself decides when.
REQUEUED_AT_ONCE = ("Preempted", "NodeFailures")
NOT_READY = "not all pods are ready"


@dataclass(frozen=True)
class Report:
    """What has happened to the pods of a run."""

    pods_ready: bool | None = None  # None: no change
    servers: int | None = None  # pods of servers that still need quota; None: all of them
    hand_back: bool = False  # the run was evicted and its pods have ended
    finished: Reason | None = None  # Succeeded or Failed; its pods have ended


def status_patch(workload: Object, report: Report, now: datetime) -> Object | None:
    """A merge patch of the Workload's status, valid for its resource version only; None if nothing changes."""
    before = (workload.get("status") or {}).get("conditions") or []
    if has_condition(workload, kueue.FINISHED):
        return None
    conditions = [dict(one) for one in before]
    status: Object = {}
    generation = int(workload["metadata"].get("generation") or 0)

    def put(kind: str, truth: bool, reason: str, message: str) -> None:
        new = {"type": kind, "status": "True" if truth else "False", "reason": reason}
        new["message"] = message[:MAX_MESSAGE_LENGTH]
        old = next((one for one in conditions if one.get("type") == kind), None)
        if old is not None and new.items() <= old.items():
            return
        same = old is not None and old.get("status") == new["status"]
        since = str(old["lastTransitionTime"]) if same and old is not None else show(now)
        entry = {**new, "lastTransitionTime": since, **({"observedGeneration": generation} if generation else {})}
        conditions[:] = [one for one in conditions if one.get("type") != kind] + [entry]

    evicted = condition_of(workload, kueue.EVICTED) or {}
    if report.hand_back and has_quota(workload) and evicted.get("status") == "True":
        reason, message = str(evicted.get("reason")), str(evicted.get("message") or "")
        status |= {"admission": None, "reclaimablePods": None}
        put(kueue.REQUEUED, reason in REQUEUED_AT_ONCE, reason, message)
        put(kueue.QUOTA_RESERVED, False, "Pending", message)
        put(kueue.ADMITTED, False, "NoReservation", "The workload has no reservation")
        put(kueue.PODS_READY, False, "WaitForStart", NOT_READY)
    if report.pods_ready is not None and has_condition(workload, kueue.ADMITTED):
        put(kueue.PODS_READY, report.pods_ready, *_readiness(workload, report.pods_ready))
    if report.finished is not None:
        put(kueue.FINISHED, True, report.finished.code, report.finished.message or report.finished.code)
    reclaimable = _reclaimable(workload, report)
    if reclaimable is not None:
        status["reclaimablePods"] = reclaimable
    if conditions != before:
        status["conditions"] = conditions
    if not status:
        return None
    return {"metadata": {"resourceVersion": workload["metadata"]["resourceVersion"]}, "status": status}


def _readiness(workload: Object, ready: bool) -> tuple[str, str]:
    """Reason and message as Kueue's own integrations choose them: its time-outs depend on them."""
    before = condition_of(workload, kueue.PODS_READY) or {}
    lost_pods = before.get("status") == "True" or before.get("reason") == "WaitForRecovery"
    if ready:
        again = before.get("reason") in ("WaitForRecovery", "Recovered")
        return ("Recovered" if again else "Started"), "all pods are ready"
    return ("WaitForRecovery" if lost_pods else "WaitForStart"), NOT_READY


def _reclaimable(workload: Object, report: Report) -> list[Object] | None:
    """Freed servers; the number only grows while quota is reserved. None: no change."""
    if report.servers is None or not has_quota(workload) or report.hand_back:
        return None
    status = workload["status"]
    before = {str(one["name"]): int(one["count"]) for one in status.get("reclaimablePods") or ()}
    assignments = (status.get("admission") or {}).get("podSetAssignments") or ()
    admitted = next((int(one.get("count") or 0) for one in assignments if one.get("name") == SERVERS), 0)
    freed = admitted - report.servers
    if freed <= before.get(SERVERS, 0):
        return None
    return [{"name": name, "count": count} for name, count in {**before, SERVERS: freed}.items()]
