"""Computes the desired state from the observed state. ``plan`` holds the operator's whole policy and is pure.

A run is a sequence of attempts, each with its own Job. The number of the current attempt is in the status before its
Job is created, the Job's UID once it was created, and the outcome once the operator has seen it. An operator that is
restarted at any point continues from there, and a Job is never created twice. Succeeded and Failed are final.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from areal_api import conditions, resource_names
from areal_api.status import TERMINAL_PHASES, AttemptOutcome, ExperimentStatus, Phase
from areal_operator import elastic, programs
from areal_operator import status as report
from areal_operator.borrowing import Borrowing, borrowing
from areal_operator.clock import seconds_since, show
from areal_operator.diagnosis import Reason, claim_problem
from areal_operator.gangs import MissingApiError
from areal_operator.manifests import agents, code, pod_groups, servers, shared, trainer
from areal_operator.manifests.base import DIGEST, Build, Manifest
from areal_operator.observed import (
    ExperimentState,
    Object,
    Observed,
    annotation,
    is_active,
    is_finished,
    is_terminating,
    label,
)
from areal_operator.plan_inputs import PlanInputs, without_future_times
from areal_operator.pruning import is_suspending, to_prune
from areal_operator.queueing import kueue
from areal_operator.queueing.report import Report
from areal_operator.quota import within_quota
from areal_operator.settings import Settings
from areal_operator.status import ConditionUpdate

MAX_RETRY_DELAY_S = 360.0
SHORT_ATTEMPT_S = 60.0  # disruptions of shorter attempts are delayed more and more: something prevents every attempt
SIDECAR_GRACE_S = 60.0  # how long other containers of a finished trainer's pod may run before the Job is deleted
MAX_MESSAGE_LENGTH = 1000


@dataclass(frozen=True)
class Plan:
    """Result: write the status, delete and apply objects in this order, and reconcile again after a time."""

    status: ExperimentStatus
    objects: tuple[Manifest, ...] = ()
    prune: tuple[tuple[str, str], ...] = ()  # kind and name
    requeue_after_s: float | None = None
    delete: bool = False  # delete the experiment: its TTL has expired
    workload: Report | None = None  # what to report to Kueue, after everything else
    borrowed: Mapping[int, Report] = field(default_factory=dict)  # and about borrowed servers, by number


def plan(
    state: ExperimentState,
    observed: Observed,
    now: datetime,
    *,
    settings: Settings,
    api_key: str,
    gateway_key: str,
    rejection: Reason | None = None,
    contested: Reason | None = None,
) -> Plan:
    """Plan one experiment. Any error that its spec causes becomes the condition Accepted=False.

    ``rejection`` is what the API server last answered to the experiment's objects, ``contested`` names an object that
    another controller keeps changing.
    """
    inputs = PlanInputs(state, observed, now, settings, api_key, gateway_key, rejection, contested)
    inputs = inputs.with_status(without_future_times(state.status, now))
    try:
        return _decide(elastic.scaled(inputs.through_gate()))
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
        problem = str(error) if isinstance(error, ValueError) else f"the spec cannot be processed: {error!r}"
        missing = isinstance(error, MissingApiError)
        return Plan(
            rejected(state.status, problem, now=now, generation=state.generation),
            requeue_after_s=settings.waiting_s if missing else None,
        )


def rejected(status: ExperimentStatus, problem: str, *, now: datetime, generation: int) -> ExperimentStatus:
    """The status of a spec that cannot be carried out. Whatever runs already is left alone."""
    problem = problem if len(problem) <= MAX_MESSAGE_LENGTH else f"{problem[: MAX_MESSAGE_LENGTH - 1]}…"
    update = ConditionUpdate(conditions.ACCEPTED, "False", Reason(conditions.INVALID, problem))
    merged = report.updated_conditions(status.conditions, [update], now=now, generation=generation)
    return status.model_copy(update={"conditions": merged, "message": problem, "observed_generation": generation})


def _decide(inputs: PlanInputs) -> Plan:
    status = inputs.status
    if status.phase in TERMINAL_PHASES:
        return _after_finish(inputs)
    outcome = inputs.outcome()
    if outcome is not None and outcome.result == "Succeeded":
        inputs = inputs.with_status(status.model_copy(update={"outcome": outcome}))
        return _finish(inputs, "Succeeded", Reason(conditions.SUCCEEDED, outcome.message))
    if inputs.spec.run_policy.suspend or is_suspending(status):
        return _stop(inputs)
    stopped = status.attempt == 0 or status.phase in ("Suspended", "Queued")
    if inputs.gate.frozen and not stopped:
        return Plan(inputs.updated(message=_reason_of(inputs).message), requeue_after_s=inputs.settings.waiting_s)
    if not inputs.gate.open:
        return _stop(inputs)
    if stopped:
        quota = within_quota(inputs.build(status.attempt + 1), inputs.observed.quotas)
        return _start(inputs, quota) if quota is None or quota.status == "True" else _refused_by_quota(inputs, quota)
    limit = inputs.spec.run_policy.active_deadline_seconds
    if limit is not None and seconds_since(status.active_since, inputs.now) >= limit:
        text = f"the run took longer than runPolicy.activeDeadlineSeconds = {limit}"
        return _finish(inputs, "Failed", Reason(conditions.DEADLINE_EXCEEDED, text))
    return _run(inputs) if outcome is None else _after_failure(inputs, outcome)


def _refused_by_quota(inputs: PlanInputs, quota: ConditionUpdate) -> Plan:
    """Nothing starts: some pods of the run would hold their resources for ever and wait for the others."""
    return Plan(inputs.updated([quota], message=quota.reason.message), requeue_after_s=inputs.settings.waiting_s)


def _start(inputs: PlanInputs, quota: ConditionUpdate | None) -> Plan:
    """The first attempt, or the first one after a suspension or a wait in a queue."""
    now = show(inputs.now)
    unfinished = Reason(conditions.RUNNING, "the run has not finished")
    status = inputs.updated(
        [
            ConditionUpdate(conditions.SUSPENDED, "False", Reason(conditions.NOT_SUSPENDED, "the run may proceed")),
            ConditionUpdate(conditions.SUCCEEDED, "Unknown", unfinished),
            *([] if quota is None else [quota]),
        ],
        phase="Starting",
        attempt=inputs.status.attempt + 1,
        job_uid=None,
        outcome=None,
        start_time=inputs.status.start_time or now,
        active_since=now,
        attempt_since=now,
        autoscale=None,
        message="servers and trainer are being started",
    )
    return _run(inputs.with_status(status))


def _after_failure(inputs: PlanInputs, outcome: AttemptOutcome) -> Plan:
    """After a failure or disruption: the next attempt, if necessary after a delay, or the end of the run."""
    status, spec = inputs.status, inputs.spec
    disrupted = outcome.result == "Disrupted"
    inputs = inputs.with_status(status.model_copy(update={"outcome": outcome}))
    limit = 0 if spec.config.recover.mode == "disabled" else spec.run_policy.backoff_limit
    if not disrupted and (outcome.final or status.restarts >= limit):
        return _finish(inputs, "Failed", _last_failure(inputs, outcome, limit))
    delay_s = _retry_delay_s(inputs, outcome)
    left_s = delay_s - seconds_since(outcome.time, inputs.now)
    if left_s > 0:
        counted = "it does not count" if disrupted else f"restart {status.restarts + 1} of {limit}"
        text = (
            f"attempt {status.attempt} failed: {outcome.message}; the next one starts {delay_s:.0f} s later, {counted}"
        )
        update = ConditionUpdate(conditions.TRAINER_RUNNING, "False", Reason(conditions.BACK_OFF, text))
        return _running_plan(inputs, trainer_update=update, phase="Starting", wait_s=left_s)
    started = inputs.updated(
        phase="Starting",
        attempt=status.attempt + 1,
        job_uid=None,
        outcome=None,
        restarts=status.restarts + (0 if disrupted else 1),
        disruptions=status.disruptions + (1 if disrupted else 0),
        attempt_since=show(inputs.now),
    )
    return _run(inputs.with_status(started))


def _retry_delay_s(inputs: PlanInputs, outcome: AttemptOutcome) -> float:
    """Delay before the next attempt. It doubles with every restart, and with repeated disruptions of short attempts."""
    status, retry_s = inputs.status, inputs.settings.retry_s
    doublings = status.restarts
    if outcome.result == "Disrupted":
        lasted_s = seconds_since(status.attempt_since, inputs.now) - seconds_since(outcome.time, inputs.now)
        doublings = status.disruptions - 3
        if lasted_s >= SHORT_ATTEMPT_S or doublings < 0:
            return 0.0
    return min(MAX_RETRY_DELAY_S, retry_s * 2.0 ** min(doublings, 32))


def _last_failure(inputs: PlanInputs, outcome: AttemptOutcome, limit: int) -> Reason:
    text = f"attempt {inputs.status.attempt} failed: {outcome.message}"
    if outcome.final:
        return Reason(outcome.reason, f"{text}; another attempt would end the same way")
    if inputs.spec.config.recover.mode == "disabled":
        text += "; without recovery checkpoints (recover.mode) there is no other attempt"
        return Reason(outcome.reason, text)
    return Reason(outcome.reason, f"{text}; that was the last of {limit} restarts (runPolicy.backoffLimit)")


def _run(inputs: PlanInputs) -> Plan:
    """An attempt in progress: its objects, and whether servers and trainer run."""
    job = inputs.job()
    if job is not None and inputs.status.job_uid is None:
        inputs = inputs.with_status(inputs.status.model_copy(update={"job_uid": job["metadata"]["uid"]}))
    status, state = inputs.status, inputs.state
    blockers = _pods_to_wait_for(inputs)
    update = report.trainer(state.experiment, inputs.observed, attempt=status.attempt)
    if blockers:
        text = f"attempt {status.attempt} waits until earlier pods have ended: {', '.join(blockers)}"
        text += "; if a node is gone for good, delete its pods with --force"
        update = ConditionUpdate(conditions.TRAINER_RUNNING, "False", Reason(conditions.WAITING_FOR_PODS, text))
    ready = report.servers_status(state.experiment, inputs.observed, wanted=True).ready
    runs = status.phase == "Running" or (update.status == "True" and ready > 0)
    limit = inputs.spec.run_policy.pre_running_deadline_seconds
    if not runs and limit is not None and seconds_since(status.attempt_since, inputs.now) >= limit:
        reason = _why_not_running(inputs, update)
        text = f"servers and trainer did not run within runPolicy.preRunningDeadlineSeconds = {limit}: {reason.message}"
        return _finish(inputs, "Failed", Reason(conditions.PRE_RUNNING_DEADLINE_EXCEEDED, text))
    may_create = not blockers and (job is not None or status.job_uid is None)
    return _running_plan(inputs, trainer_update=update, phase="Running" if runs else "Starting", job=may_create)


def _running_plan(
    inputs: PlanInputs,
    *,
    trainer_update: ConditionUpdate,
    phase: Phase,
    job: bool = False,
    wait_s: float | None = None,
) -> Plan:
    """Status and objects of an attempt. ``job``: apply its Job."""
    state, observed = inputs.state, inputs.observed
    wanted = programs.wanted(inputs, trainer_update)
    updates = [
        report.storage(state.experiment, observed, uid=state.uid),
        report.servers(state.experiment, observed, addressed=inputs.addressed()),
        trainer_update,
        *programs.ready(state.experiment, observed, wanted=wanted),
    ]
    status = inputs.updated(
        updates,
        phase=phase,
        code=_code(inputs),
        message=_message(
            [inputs.acceptance(), *updates, *report.policy_health(inputs.status)], inputs.contested, phase
        ),
        servers=report.servers_status(state.experiment, observed, wanted=True),
        agents=programs.numbers(state.experiment, observed, wanted=(*inputs.spec.agents, *inputs.spec.tools)),
    )
    borrowed = borrowing(inputs, servers=inputs.spec.servers.replicas)
    objects = (*_attempt_objects(inputs, borrowed, job=job), *programs.manifests(inputs, wanted))
    waits = [_deadline_s(inputs, phase), wait_s]
    if inputs.rejection is not None or inputs.contested is not None or _changes_unseen(inputs, borrowed):
        waits.append(inputs.settings.waiting_s)
    due = [wait for wait in waits if wait is not None]
    pods_ready = all(update.status == "True" for update in updates[1:3])
    return Plan(
        status,
        objects,
        (*to_prune(inputs, objects, kept=borrowed.kept), *_discarded(inputs)),
        max(0.1, min(due)) if due else None,
        workload=Report(pods_ready=pods_ready, servers=_quota_needed(inputs)),
        borrowed=borrowed.reports,
    )


def _quota_needed(inputs: PlanInputs) -> int | None:
    """Pods of servers that need the quota of the gang; None: all of it, which is that of ``servers.autoscale.min``."""
    servers = inputs.spec.servers
    if servers.autoscale is not None:
        return None
    return max(servers.pods, report.active_servers(inputs.observed))


def _code(inputs: PlanInputs) -> str | None:
    """The code of the current attempt: its Job's, because the spec may have been edited."""
    job = inputs.job()
    return inputs.spec.code.identity or None if job is None else annotation(job, code.CODE)


def _changes_unseen(inputs: PlanInputs, borrowed: Borrowing) -> bool:
    """Whether the run waits for something that the operator does not watch: the volume claim of somebody else, or for a
    borrowed server room, a priority class or a flavor."""
    claim = inputs.claim()
    foreign = claim is not None and not shared.is_created_by_operator(claim)
    unbound = foreign and claim_problem(claim, inputs.observed) is not None
    return unbound or borrowed.unwatched or elastic.pending(inputs, borrowed).unschedulable > 0


def _stop(inputs: PlanInputs) -> Plan:
    """Nothing may run: the run is suspended, or its queue has not admitted it. Once begun, stopping completes."""
    if inputs.status.attempt == 0:
        return _not_started(inputs)
    active = report.active_pods(inputs.observed)
    objects = (*inputs.gate.to_apply, *_common_objects(inputs))
    queued = inputs.gate.queue is not None and not inputs.spec.run_policy.suspend
    if active or _live_jobs(inputs.observed) or inputs.observed.objects.get("StatefulSet"):
        reason = Reason(conditions.SUSPENDING, f"waiting until pods have ended: {', '.join(active) or 'none is left'}")
        update = ConditionUpdate(conditions.SUSPENDED, "False", reason)
        why = f"{_reason_of(inputs).message}; " if queued and not inputs.gate.open else "suspending: "
        status = inputs.updated([update], message=f"{why}{reason.message}")
        return Plan(status, objects, to_prune(inputs, objects), inputs.settings.waiting_s)
    text = "nothing runs; runPolicy.suspend: false resumes from the last recovery checkpoint"
    if queued:
        text = f"{(inputs.rejection or _reason_of(inputs)).message}; the run resumes from its last recovery checkpoint"
    code = conditions.QUEUED if queued else conditions.SUSPENDED
    stopped = Reason(code, "the run waits in its queue" if queued else "the run is suspended")
    status = inputs.updated(
        [
            ConditionUpdate(conditions.SUSPENDED, "True", Reason(code, text)),
            ConditionUpdate(conditions.SERVERS_READY, "False", stopped),
            ConditionUpdate(conditions.TRAINER_RUNNING, "False", stopped),
            *programs.stopped(inputs.state.experiment, stopped),
        ],
        phase="Queued" if queued else "Suspended",
        message=text,
        active_since=None,
        attempt_since=None,
        servers=report.servers_status(inputs.state.experiment, inputs.observed, wanted=False),
        agents=programs.numbers(inputs.state.experiment, inputs.observed, wanted=()),
    )
    prune = (*to_prune(inputs, objects), *_discarded(inputs))
    return Plan(status, objects, prune, _queue_wait_s(inputs), workload=_hand_back(inputs))


def _not_started(inputs: PlanInputs) -> Plan:
    """The run may not start yet: it is suspended, or waits in a queue with nothing but its Workload."""
    if inputs.spec.run_policy.suspend:
        reason, phase = Reason(conditions.SUSPENDED, "the run has not started: runPolicy.suspend is true"), "Suspended"
    else:
        reason, phase = Reason(conditions.QUEUED, (inputs.rejection or _reason_of(inputs)).message), "Queued"
    update = ConditionUpdate(conditions.SUSPENDED, "True", reason)
    status = inputs.updated([update], phase=phase, message=reason.message)
    return Plan(status, inputs.gate.to_apply, _discarded(inputs), _queue_wait_s(inputs), workload=_hand_back(inputs))


def _reason_of(inputs: PlanInputs) -> Reason:
    """Why the queue lets nothing run."""
    return inputs.gate.reason or Reason(conditions.QUEUED, "the run waits in its queue")


def _queue_wait_s(inputs: PlanInputs) -> float | None:
    """When to look again at a run that waits: its Workload is watched, what else it depends on is not."""
    if inputs.spec.run_policy.suspend:
        return None
    unwatched = inputs.gate.frozen or inputs.rejection is not None
    unwatched = unwatched or _reason_of(inputs).code == conditions.NO_PRIORITY_CLASS
    return 0.1 if inputs.gate.open else inputs.settings.waiting_s if unwatched else None


def _discarded(inputs: PlanInputs) -> tuple[tuple[str, str], ...]:
    """The Workload, if its quota is no longer wanted. Called once nothing has pods, or for a run without a queue."""
    return ((kueue.WORKLOAD, resource_names.workload(inputs.state.name)),) if inputs.gate.discard else ()


def _hand_back(inputs: PlanInputs) -> Report | None:
    return Report(hand_back=True) if inputs.gate.must_hand_back else None


def _finish(inputs: PlanInputs, phase: Phase, reason: Reason) -> Plan:
    """The run has ended: release the servers' resources at once."""
    ended = Reason(conditions.FINISHED, "the run has ended")
    status = inputs.updated(
        [
            ConditionUpdate(conditions.SUCCEEDED, "True" if phase == "Succeeded" else "False", reason),
            ConditionUpdate(conditions.SERVERS_READY, "False", ended),
            ConditionUpdate(conditions.TRAINER_RUNNING, "False", ended),
            *programs.stopped(inputs.state.experiment, ended),
        ],
        phase=phase,
        message=reason.message,
        completion_time=inputs.status.completion_time or show(inputs.now),
    )
    return _after_finish(inputs.with_status(status))


def _after_finish(inputs: PlanInputs) -> Plan:
    """Delete the servers, keep the trainer's finished pods for their logs, and delete the experiment after its TTL."""
    ttl = inputs.spec.run_policy.ttl_seconds_after_finished
    since_s = seconds_since(inputs.status.completion_time, inputs.now)
    status = inputs.updated(
        servers=report.servers_status(inputs.state.experiment, inputs.observed, wanted=False),
        agents=programs.numbers(inputs.state.experiment, inputs.observed, wanted=()),
    )
    claim = shared.volume_claim(inputs.build(inputs.status.attempt), inputs.claim())
    objects = () if claim is None else (claim,)
    lingering = _lingering_job(inputs)
    prune = tuple(
        (kind, name)
        for kind, name in to_prune(inputs, objects)
        if not (lingering == name and kind == "Job" and since_s < SIDECAR_GRACE_S)
    )
    waits = [SIDECAR_GRACE_S - since_s] if lingering is not None and since_s < SIDECAR_GRACE_S else []
    waits += [] if ttl is None else [ttl - since_s]
    expired = ttl is not None and since_s >= ttl
    ended = Report(finished=Reason(status.phase, status.message))  # its quota is free once its pods have ended
    return Plan(
        status,
        objects,
        prune,
        max(0.1, min(waits)) if waits else None,
        delete=expired,
        workload=None if report.active_pods(inputs.observed) else ended,
    )


def _lingering_job(inputs: PlanInputs) -> str | None:
    """The Job of a trainer that has ended by itself, while other containers keep its pods running."""
    job = inputs.job()
    if job is None or is_finished(job) or inputs.status.outcome is None:
        return None
    return str(job["metadata"]["name"])


def _attempt_objects(inputs: PlanInputs, borrowed: Borrowing, *, job: bool) -> tuple[Manifest, ...]:
    build = inputs.attempt_build(inputs.status.attempt)
    guaranteed = inputs.spec.servers.guaranteed
    objects = [*_common_objects(inputs), *pod_groups.manifests(build), *servers.disruption_budget(build)]
    objects += [servers.server_set(build, guaranteed), *servers.pool_sets(build), *borrowed.manifests(build)]
    return (*objects, *_job(inputs, build)) if job else tuple(objects)


def _common_objects(inputs: PlanInputs) -> tuple[Manifest, ...]:
    """Objects that exist in every state of a run that has started."""
    build, name = inputs.build(inputs.status.attempt), inputs.state.name
    claim = shared.volume_claim(build, inputs.claim())
    return (
        shared.run_secret(build),
        shared.service_account(build),
        *(() if claim is None else (claim,)),
        shared.network_policy(build),
        *agents.access(build),
        shared.headless_service(build, resource_names.servers(name), resource_names.SERVER, resource_names.SERVER_PORT),
        *trainer.service(build),
    )


def _job(inputs: PlanInputs, build: Build) -> list[Manifest]:
    """The Job, unless the existing one was built from another spec: its template is immutable."""
    manifest, existing = trainer.trainer_job(build), inputs.job()
    same = existing is None or annotation(existing, DIGEST) == manifest["metadata"]["annotations"][DIGEST]
    return [manifest] if same and not (existing is not None and is_terminating(existing)) else []


def _pods_to_wait_for(inputs: PlanInputs) -> list[str]:
    """Trainer pods that must end before the current attempt's Job is created: two trainers would share the volume."""
    attempt, job = str(inputs.status.attempt), inputs.job()
    return [
        str(pod["metadata"]["name"])
        for pod in inputs.observed.pods(resource_names.TRAINER)
        if is_active(pod) and (label(pod, resource_names.ATTEMPT) != attempt or job is None or is_terminating(job))
    ]


def _deadline_s(inputs: PlanInputs, phase: Phase) -> float | None:
    """Seconds until the nearest deadline."""
    policy, status = inputs.spec.run_policy, inputs.status
    left: list[float] = []
    if policy.active_deadline_seconds is not None:
        left.append(policy.active_deadline_seconds - seconds_since(status.active_since, inputs.now))
    if policy.pre_running_deadline_seconds is not None and phase == "Starting":
        left.append(policy.pre_running_deadline_seconds - seconds_since(status.attempt_since, inputs.now))
    return min(left, default=None)


def _why_not_running(inputs: PlanInputs, trainer_update: ConditionUpdate) -> Reason:
    if inputs.rejection is not None:
        return inputs.rejection
    if trainer_update.status != "True":
        return trainer_update.reason
    return report.servers(inputs.state.experiment, inputs.observed, addressed=inputs.addressed()).reason


def _message(updates: Sequence[ConditionUpdate], contested: Reason | None, phase: Phase) -> str:
    """The most useful sentence: the first problem, else what is still pending while the run starts."""
    waiting = [update.reason for update in updates if update.status != "True"]
    pending = [reason for reason in waiting if reason.code != conditions.WAITING_FOR_TRAINER]  # for the one before it
    problems = [reason.message for reason in pending if reason.code not in conditions.BENIGN]
    if contested is not None:
        problems.append(contested.message)
    if problems:
        return problems[0]
    return pending[-1].message if pending and phase == "Starting" else ""


def _live_jobs(observed: Observed) -> list[Object]:
    return [job for job in observed.objects.get("Job", ()) if not is_finished(job)]
