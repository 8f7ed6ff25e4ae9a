"""What is to be, decided from what is: ``plan`` is the whole policy of the operator. Pure; the acting is elsewhere.

A run is a sequence of attempts, a Job each. The number of the current one stands in the status before its Job is made,
so that a restart of the operator at any point goes on where it was. Succeeded and Failed stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from areal_api import resource_names
from areal_api.status import TERMINAL_PHASES, ExperimentStatus
from areal_operator import status as report
from areal_operator.clock import seconds_since, show
from areal_operator.diagnosis import Failure, Why, job_failure
from areal_operator.manifests import servers, shared, trainer
from areal_operator.manifests.base import DIGEST, Build, Manifest
from areal_operator.observed import Object, Observed, Subject, condition_of, is_active, is_leaving, label
from areal_operator.settings import Settings
from areal_operator.status import Finding

LONGEST_RETRY_S = 360.0
SERVER_KINDS = ("StatefulSet", "PodDisruptionBudget")
KEPT_KINDS = ("ConfigMap", "PersistentVolumeClaim", "Pod")  # never pruned: pods and claims go with others, or stay


@dataclass(frozen=True)
class Plan:
    """What a reconcile does: write the status, apply objects in their order, remove other children, look again."""

    status: ExperimentStatus
    objects: tuple[Manifest, ...] = ()
    prune: tuple[tuple[str, str], ...] = ()  # kind and name
    requeue_after_s: float | None = None
    delete: bool = False  # the experiment itself: its time after the end is over


@dataclass(frozen=True)
class View:
    """Everything that a decision is made from."""

    subject: Subject
    observed: Observed
    now: datetime
    settings: Settings
    api_key: str
    refusal: Why | None = None  # what the API server said when the objects were applied last

    @property
    def status(self) -> ExperimentStatus:
        """The status so far."""
        return self.subject.status

    @property
    def spec(self) -> Any:
        """The spec."""
        return self.subject.experiment.spec

    def build(self, attempt: int) -> Build:
        """What the builders of manifests are given."""
        subject = self.subject
        return Build(subject.experiment, subject.namespace, subject.uid, attempt, self.api_key, self.settings)

    def job(self) -> Object | None:
        """The Job of the current attempt."""
        return self.observed.get("Job", resource_names.trainer_job(self.subject.name, self.status.attempt))

    def acceptance(self) -> Finding:
        """Whether the experiment can be carried out."""
        if self.refusal is not None:
            return Finding(report.ACCEPTED, "False", self.refusal)
        return Finding(report.ACCEPTED, "True", Why("Accepted", "the experiment is valid"))

    def updated(self, findings: Sequence[Finding] = (), **changes: Any) -> ExperimentStatus:
        """The status with ``changes`` and the conditions of ``findings``."""
        conditions = report.with_findings(
            self.status.conditions,
            [self.acceptance(), *findings],
            now=self.now,
            generation=self.subject.generation,
        )
        changes = {"conditions": conditions, "observed_generation": self.subject.generation, **changes}
        return self.status.model_copy(update=changes)


def plan(
    subject: Subject,
    observed: Observed,
    now: datetime,
    *,
    settings: Settings,
    api_key: str,
    refusal: Why | None = None,
) -> Plan:
    """What is to be done about one experiment. ``refusal`` is what the API server last said against its objects."""
    view = View(subject, observed, now, settings, api_key, refusal)
    try:
        return _decide(view)
    except ValueError as error:
        return Plan(refused(subject.status, str(error), now=now, generation=subject.generation))


def refused(status: ExperimentStatus, problem: str, *, now: datetime, generation: int) -> ExperimentStatus:
    """The status of a spec that cannot be carried out. What runs already is left alone."""
    finding = Finding(report.ACCEPTED, "False", Why("Invalid", problem))
    conditions = report.with_findings(status.conditions, [finding], now=now, generation=generation)
    return status.model_copy(update={"conditions": conditions, "message": problem, "observed_generation": generation})


def _decide(view: View) -> Plan:
    status, job = view.status, view.job()
    if status.phase in TERMINAL_PHASES:
        return _after_end(view)
    if job is not None and (condition_of(job, "Complete") or {}).get("status") == "True":
        why = Why("Succeeded", f"the trainer finished in attempt {status.attempt}")
        return _end(view, "Succeeded", why)
    if view.spec.run_policy.suspend or _suspending(status):
        return _suspend(view)
    if status.attempt == 0 or status.phase == "Suspended":
        return _start(view)
    limit = view.spec.run_policy.active_deadline_seconds
    if limit is not None and seconds_since(status.active_since, view.now) >= limit:
        return _end(
            view,
            "Failed",
            Why("DeadlineExceeded", f"the run took longer than runPolicy.activeDeadlineSeconds = {limit}"),
        )
    failure = None
    if job is not None:
        failure = job_failure(job, view.observed.trainer_pods(status.attempt), nodes=view.spec.trainer.nodes)
    return _run(view) if failure is None else _after_failure(view, failure)


def _start(view: View) -> Plan:
    """The first attempt, or the first one after a suspension."""
    now = show(view.now)
    status = view.updated(
        [Finding(report.SUSPENDED, "False", Why("NotSuspended", "the run may go on")), _unfinished()],
        phase="Starting",
        attempt=view.status.attempt + 1,
        start_time=view.status.start_time or now,
        active_since=now,
        attempt_since=now,
        message="servers and trainer are being started",
    )
    return _run(_with_status(view, status))


def _after_failure(view: View, failure: Failure) -> Plan:
    """The next attempt, at once after a disruption, later after a failure of ours; or the end."""
    status, spec = view.status, view.spec
    limit = 0 if spec.config.recover.mode == "disabled" else spec.run_policy.backoff_limit
    if not failure.disruption and (failure.final or status.restarts >= limit):
        return _end(view, "Failed", _last_failure(view, failure, limit))
    delay_s = 0.0 if failure.disruption else min(LONGEST_RETRY_S, view.settings.retry_s * 2.0**status.restarts)
    left_s = (failure.at + timedelta(seconds=delay_s) - view.now).total_seconds()
    counted = "it does not count" if failure.disruption else f"restart {status.restarts + 1} of {limit}"
    text = f"attempt {status.attempt} failed: {failure.why.message}"
    if left_s > 0:
        why = Why("BackOff", f"{text}; the next one begins {delay_s:.0f} s later, {counted}")
        return _running_plan(
            view, trainer_finding=Finding(report.TRAINER, "False", why), phase="Starting", wait_s=left_s
        )
    now = show(view.now)
    started = view.updated(
        [Finding(report.TRAINER, "False", Why("Restarting", f"{text}; {counted}"))],
        phase="Starting",
        attempt=status.attempt + 1,
        restarts=status.restarts + (0 if failure.disruption else 1),
        disruptions=status.disruptions + (1 if failure.disruption else 0),
        attempt_since=now,
    )
    return _run(_with_status(view, started))


def _last_failure(view: View, failure: Failure, limit: int) -> Why:
    text = f"attempt {view.status.attempt} failed: {failure.why.message}"
    if failure.final:
        return Why(failure.why.reason, f"{text}; another attempt would end the same way")
    if view.spec.config.recover.mode == "disabled":
        return Why(failure.why.reason, f"{text}; without recovery checkpoints (recover.mode) there is no other attempt")
    return Why(failure.why.reason, f"{text}; that was the last of {limit} restarts (runPolicy.backoffLimit)")


def _run(view: View) -> Plan:
    """Everything that runs in an attempt, and whether it does."""
    status, subject = view.status, view.subject
    blockers = _blockers(view)
    found = report.trainer(subject.experiment, view.observed, attempt=status.attempt)
    if blockers:
        text = f"attempt {status.attempt} waits for the end of pods of the one before: {', '.join(blockers)}"
        text += "; where a node is gone for good, delete its pods with --force"
        found = Finding(report.TRAINER, "False", Why("WaitingForPods", text))
    ready = report.servers_status(subject.experiment, view.observed, desired=view.spec.servers.replicas).ready
    runs = status.phase == "Running" or (found.truth == "True" and ready > 0)
    limit = view.spec.run_policy.pre_running_deadline_seconds
    if not runs and limit is not None and seconds_since(status.attempt_since, view.now) >= limit:
        why = _why_not_running(view, found)
        text = f"servers and trainer did not run within runPolicy.preRunningDeadlineSeconds = {limit}: {why.message}"
        return _end(view, "Failed", Why("PreRunningDeadlineExceeded", text))
    return _running_plan(view, trainer_finding=found, phase="Running" if runs else "Starting", job=not blockers)


def _running_plan(
    view: View, *, trainer_finding: Finding, phase: str, job: bool = False, wait_s: float | None = None
) -> Plan:
    """Status and objects of an attempt. ``job``: its Job may be made."""
    subject, observed = view.subject, view.observed
    findings = [
        report.storage(subject.experiment, observed),
        report.servers(subject.experiment, observed, known=_known_servers(view)),
        trainer_finding,
    ]
    status = view.updated(
        findings,
        phase=phase,
        message=_message([view.acceptance(), *findings], phase),
        servers=report.servers_status(subject.experiment, observed, desired=view.spec.servers.replicas),
    )
    objects = _objects(view, job=job)
    waits = [_deadline_s(view, phase), wait_s]
    if view.refusal is not None or any(finding.truth != "True" for finding in findings):
        waits.append(view.settings.waiting_s)
    due = [wait for wait in waits if wait is not None]
    return Plan(status, objects, _others(view, objects), max(0.1, min(due)) if due else None)


def _suspend(view: View) -> Plan:
    """Nothing is to run. Once begun it is finished, also when the flag is taken back meanwhile."""
    if view.status.attempt == 0:
        why = Why("Suspended", "the run has not started: runPolicy.suspend is true")
        return Plan(view.updated([Finding(report.SUSPENDED, "True", why)], phase="Suspended", message=why.message))
    left = report.ending_pods(view.observed)
    objects = _base(view)
    if left or _live_jobs(view.observed) or view.observed.objects.get("StatefulSet"):
        why = Why(report.SUSPENDING, f"waits for the end of pods: {', '.join(left) or 'none is left'}")
        status = view.updated([Finding(report.SUSPENDED, "False", why)], message=f"suspending: {why.message}")
        return Plan(status, objects, _others(view, objects), view.settings.waiting_s)
    why = Why("Suspended", "nothing runs; runPolicy.suspend: false goes on from the last recovery checkpoint")
    stopped = Why("Suspended", "the run is suspended")
    status = view.updated(
        [
            Finding(report.SUSPENDED, "True", why),
            Finding(report.SERVERS, "False", stopped),
            Finding(report.TRAINER, "False", stopped),
        ],
        phase="Suspended",
        message=why.message,
        active_since=None,
        attempt_since=None,
        servers=report.servers_status(view.subject.experiment, view.observed, desired=0),
    )
    wait_s = None if view.spec.run_policy.suspend else 0.1
    return Plan(status, objects, _others(view, objects), wait_s)


def _end(view: View, phase: str, why: Why) -> Plan:
    """The run is over: what the servers hold is given back at once."""
    ended = Why("Finished", "the run is over")
    status = view.updated(
        [
            Finding(report.SUCCEEDED, "True" if phase == "Succeeded" else "False", why),
            Finding(report.SERVERS, "False", ended),
            Finding(report.TRAINER, "False", ended),
        ],
        phase=phase,
        message=why.message,
        completion_time=view.status.completion_time or show(view.now),
    )
    return _after_end(_with_status(view, status))


def _after_end(view: View) -> Plan:
    """Servers are freed, the finished trainer's pods stay for their logs, and at last the experiment goes."""
    ttl = view.spec.run_policy.ttl_seconds_after_finished
    left_s = None if ttl is None else ttl - seconds_since(view.status.completion_time, view.now)
    status = view.updated(servers=report.servers_status(view.subject.experiment, view.observed, desired=0))
    objects = (_volume_claim(view),)
    prune = tuple(
        (kind, name)
        for kind, name in _others(view, objects)
        if kind in (*SERVER_KINDS, "Job") or (kind, name) == ("Service", resource_names.servers(view.subject.name))
    )
    return Plan(status, objects, prune, left_s if left_s is None else max(0.1, left_s), delete=_is_over(left_s))


def _objects(view: View, *, job: bool) -> tuple[Manifest, ...]:
    build = view.build(view.status.attempt)
    replicas = view.spec.servers.replicas
    made = [*_base(view), servers.disruption_budget(build), servers.server_set(build, replicas)]
    if job:
        made += _job(view, build)
    return tuple(made)


def _base(view: View) -> tuple[Manifest, ...]:
    """What every state of a started run has."""
    build, name = view.build(view.status.attempt), view.subject.name
    return (
        shared.config_map(build),
        shared.api_key_secret(build),
        shared.service_account(build),
        _volume_claim(view),
        shared.network_policy(build),
        shared.headless_service(build, resource_names.servers(name), resource_names.SERVER, resource_names.SERVER_PORT),
        shared.headless_service(
            build, resource_names.trainer(name), resource_names.TRAINER, resource_names.MASTER_PORT
        ),
    )


def _volume_claim(view: View) -> Manifest:
    existing = view.observed.get("PersistentVolumeClaim", resource_names.volume_claim(view.subject.name))
    return shared.volume_claim(view.build(view.status.attempt), existing)


def _job(view: View, build: Build) -> list[Manifest]:
    """The Job, unless it was made from another spec: its template never changes, the next attempt has the new one."""
    wanted, existing = trainer.trainer_job(build), view.job()
    made_from = existing and (existing["metadata"].get("annotations") or {}).get(DIGEST)
    same = existing is None or made_from == wanted["metadata"]["annotations"][DIGEST]
    return [wanted] if same else []


def _others(view: View, objects: Iterable[Manifest]) -> tuple[tuple[str, str], ...]:
    """Children that are not wanted any more. The last finished Jobs stay, for the logs of their pods."""
    wanted = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in objects}
    name, attempt = view.subject.name, view.status.attempt
    current = resource_names.trainer_job(name, attempt)
    last = (current, resource_names.trainer_job(name, attempt - 1))
    result: list[tuple[str, str]] = []
    for kind, found in view.observed.objects.items():
        for obj in found:
            key = (kind, str(obj["metadata"]["name"]))
            if kind in KEPT_KINDS or key in wanted or is_leaving(obj):
                continue
            if kind == "Job" and key[1] in last and _is_finished(obj):
                continue
            if key == ("Job", current) and _job_stays(view):
                continue
            result.append(key)
    return tuple(result)


def _job_stays(view: View) -> bool:
    return view.status.phase in ("Starting", "Running") and not (
        view.spec.run_policy.suspend or _suspending(view.status)
    )


def _blockers(view: View) -> list[str]:
    """Pods of the trainer that have to end before the Job of the current attempt is made: two would share a volume."""
    attempt, job = str(view.status.attempt), view.job()
    pods = [pod for pod in view.observed.pods(resource_names.TRAINER) if is_active(pod)]
    return [
        str(pod["metadata"]["name"])
        for pod in pods
        if label(pod, resource_names.ATTEMPT) != attempt or job is None or is_leaving(job)
    ]


def _known_servers(view: View) -> int:
    """Servers whose addresses the running trainer was given."""
    job = view.job()
    told = job and (job["metadata"].get("annotations") or {}).get(trainer.SERVERS)
    return int(told) if told else int(view.spec.max_replicas)


def _deadline_s(view: View, phase: str) -> float | None:
    """Seconds until the nearest deadline."""
    policy, status = view.spec.run_policy, view.status
    left: list[float] = []
    if policy.active_deadline_seconds is not None:
        left.append(policy.active_deadline_seconds - seconds_since(status.active_since, view.now))
    if policy.pre_running_deadline_seconds is not None and phase == "Starting":
        left.append(policy.pre_running_deadline_seconds - seconds_since(status.attempt_since, view.now))
    return min(left, default=None)


def _why_not_running(view: View, trainer_finding: Finding) -> Why:
    if view.refusal is not None:
        return view.refusal
    if trainer_finding.truth != "True":
        return trainer_finding.why
    return report.servers(view.subject.experiment, view.observed, known=_known_servers(view)).why


def _message(findings: Sequence[Finding], phase: str) -> str:
    """What is worth a sentence: the first thing that is wrong, else the first that is waited for."""
    open_ones = [finding.why for finding in findings if finding.truth != "True"]
    usual = ("Starting", "Creating", "VolumePending", "Draining")
    wrong = [why.message for why in open_ones if why.reason not in usual]
    if wrong:
        return wrong[0]
    return open_ones[-1].message if open_ones and phase == "Starting" else ""


def _suspending(status: ExperimentStatus) -> bool:
    found = report.find(status.conditions, report.SUSPENDED)
    return found is not None and found.reason == report.SUSPENDING


def _live_jobs(observed: Observed) -> list[Object]:
    return [job for job in observed.objects.get("Job", ()) if not _is_finished(job)]


def _is_finished(job: Object) -> bool:
    return any((condition_of(job, kind) or {}).get("status") == "True" for kind in ("Complete", "Failed"))


def _is_over(left_s: float | None) -> bool:
    return left_s is not None and left_s <= 0


def _unfinished() -> Finding:
    return Finding(report.SUCCEEDED, "Unknown", Why("Running", "the run is not over"))


def _with_status(view: View, status: ExperimentStatus) -> View:
    return replace(view, subject=replace(view.subject, status=status))
