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
from areal_operator.diagnosis import Failure, Reason, job_failure
from areal_operator.manifests import servers, shared, trainer
from areal_operator.manifests.base import DIGEST, Build, Manifest
from areal_operator.observed import ExperimentState, Object, Observed, condition_of, is_active, is_terminating, label
from areal_operator.settings import Settings
from areal_operator.status import ConditionUpdate

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
class PlanInputs:
    """Everything that a decision is made from."""

    state: ExperimentState
    observed: Observed
    now: datetime
    settings: Settings
    api_key: str
    refusal: Reason | None = None  # what the API server said when the objects were applied last

    @property
    def status(self) -> ExperimentStatus:
        """The status so far."""
        return self.state.status

    @property
    def spec(self) -> Any:
        """The spec."""
        return self.state.experiment.spec

    def build(self, attempt: int) -> Build:
        """What the builders of manifests are given."""
        state = self.state
        return Build(state.experiment, state.namespace, state.uid, attempt, self.api_key, self.settings)

    def job(self) -> Object | None:
        """The Job of the current attempt."""
        return self.observed.get("Job", resource_names.trainer_job(self.state.name, self.status.attempt))

    def acceptance(self) -> ConditionUpdate:
        """Whether the experiment can be carried out."""
        if self.refusal is not None:
            return ConditionUpdate(report.ACCEPTED, "False", self.refusal)
        return ConditionUpdate(report.ACCEPTED, "True", Reason("Accepted", "the experiment is valid"))

    def updated(self, updates: Sequence[ConditionUpdate] = (), **changes: Any) -> ExperimentStatus:
        """The status with ``changes`` and the conditions of ``updates``."""
        conditions = report.updated_conditions(
            self.status.conditions,
            [self.acceptance(), *updates],
            now=self.now,
            generation=self.state.generation,
        )
        changes = {"conditions": conditions, "observed_generation": self.state.generation, **changes}
        return self.status.model_copy(update=changes)


def plan(
    state: ExperimentState,
    observed: Observed,
    now: datetime,
    *,
    settings: Settings,
    api_key: str,
    refusal: Reason | None = None,
) -> Plan:
    """What is to be done about one experiment. ``refusal`` is what the API server last said against its objects."""
    inputs = PlanInputs(state, observed, now, settings, api_key, refusal)
    try:
        return _decide(inputs)
    except ValueError as error:
        return Plan(refused(state.status, str(error), now=now, generation=state.generation))


def refused(status: ExperimentStatus, problem: str, *, now: datetime, generation: int) -> ExperimentStatus:
    """The status of a spec that cannot be carried out. What runs already is left alone."""
    update = ConditionUpdate(report.ACCEPTED, "False", Reason("Invalid", problem))
    conditions = report.updated_conditions(status.conditions, [update], now=now, generation=generation)
    return status.model_copy(update={"conditions": conditions, "message": problem, "observed_generation": generation})


def _decide(inputs: PlanInputs) -> Plan:
    status, job = inputs.status, inputs.job()
    if status.phase in TERMINAL_PHASES:
        return _after_end(inputs)
    if job is not None and (condition_of(job, "Complete") or {}).get("status") == "True":
        why = Reason("Succeeded", f"the trainer finished in attempt {status.attempt}")
        return _end(inputs, "Succeeded", why)
    if inputs.spec.run_policy.suspend or _suspending(status):
        return _suspend(inputs)
    if status.attempt == 0 or status.phase == "Suspended":
        return _start(inputs)
    limit = inputs.spec.run_policy.active_deadline_seconds
    if limit is not None and seconds_since(status.active_since, inputs.now) >= limit:
        return _end(
            inputs,
            "Failed",
            Reason("DeadlineExceeded", f"the run took longer than runPolicy.activeDeadlineSeconds = {limit}"),
        )
    failure = None
    if job is not None:
        failure = job_failure(job, inputs.observed.trainer_pods(status.attempt), nodes=inputs.spec.trainer.nodes)
    return _run(inputs) if failure is None else _after_failure(inputs, failure)


def _start(inputs: PlanInputs) -> Plan:
    """The first attempt, or the first one after a suspension."""
    now = show(inputs.now)
    status = inputs.updated(
        [ConditionUpdate(report.SUSPENDED, "False", Reason("NotSuspended", "the run may go on")), _unfinished()],
        phase="Starting",
        attempt=inputs.status.attempt + 1,
        start_time=inputs.status.start_time or now,
        active_since=now,
        attempt_since=now,
        message="servers and trainer are being started",
    )
    return _run(_with_status(inputs, status))


def _after_failure(inputs: PlanInputs, failure: Failure) -> Plan:
    """The next attempt, at once after a disruption, later after a failure of ours; or the end."""
    status, spec = inputs.status, inputs.spec
    limit = 0 if spec.config.recover.mode == "disabled" else spec.run_policy.backoff_limit
    if not failure.disruption and (failure.final or status.restarts >= limit):
        return _end(inputs, "Failed", _last_failure(inputs, failure, limit))
    delay_s = 0.0 if failure.disruption else min(LONGEST_RETRY_S, inputs.settings.retry_s * 2.0**status.restarts)
    left_s = (failure.at + timedelta(seconds=delay_s) - inputs.now).total_seconds()
    counted = "it does not count" if failure.disruption else f"restart {status.restarts + 1} of {limit}"
    text = f"attempt {status.attempt} failed: {failure.why.message}"
    if left_s > 0:
        why = Reason("BackOff", f"{text}; the next one begins {delay_s:.0f} s later, {counted}")
        return _running_plan(
            inputs, trainer_update=ConditionUpdate(report.TRAINER, "False", why), phase="Starting", wait_s=left_s
        )
    now = show(inputs.now)
    started = inputs.updated(
        [ConditionUpdate(report.TRAINER, "False", Reason("Restarting", f"{text}; {counted}"))],
        phase="Starting",
        attempt=status.attempt + 1,
        restarts=status.restarts + (0 if failure.disruption else 1),
        disruptions=status.disruptions + (1 if failure.disruption else 0),
        attempt_since=now,
    )
    return _run(_with_status(inputs, started))


def _last_failure(inputs: PlanInputs, failure: Failure, limit: int) -> Reason:
    text = f"attempt {inputs.status.attempt} failed: {failure.why.message}"
    if failure.final:
        return Reason(failure.why.reason, f"{text}; another attempt would end the same way")
    if inputs.spec.config.recover.mode == "disabled":
        return Reason(
            failure.why.reason, f"{text}; without recovery checkpoints (recover.mode) there is no other attempt"
        )
    return Reason(failure.why.reason, f"{text}; that was the last of {limit} restarts (runPolicy.backoffLimit)")


def _run(inputs: PlanInputs) -> Plan:
    """Everything that runs in an attempt, and whether it does."""
    status, state = inputs.status, inputs.state
    blockers = _blockers(inputs)
    found = report.trainer(state.experiment, inputs.observed, attempt=status.attempt)
    if blockers:
        text = f"attempt {status.attempt} waits for the end of pods of the one before: {', '.join(blockers)}"
        text += "; where a node is gone for good, delete its pods with --force"
        found = ConditionUpdate(report.TRAINER, "False", Reason("WaitingForPods", text))
    ready = report.servers_status(state.experiment, inputs.observed, desired=inputs.spec.servers.replicas).ready
    runs = status.phase == "Running" or (found.status == "True" and ready > 0)
    limit = inputs.spec.run_policy.pre_running_deadline_seconds
    if not runs and limit is not None and seconds_since(status.attempt_since, inputs.now) >= limit:
        why = _why_not_running(inputs, found)
        text = f"servers and trainer did not run within runPolicy.preRunningDeadlineSeconds = {limit}: {why.message}"
        return _end(inputs, "Failed", Reason("PreRunningDeadlineExceeded", text))
    return _running_plan(inputs, trainer_update=found, phase="Running" if runs else "Starting", job=not blockers)


def _running_plan(
    inputs: PlanInputs, *, trainer_update: ConditionUpdate, phase: str, job: bool = False, wait_s: float | None = None
) -> Plan:
    """Status and objects of an attempt. ``job``: its Job may be made."""
    state, observed = inputs.state, inputs.observed
    updates = [
        report.storage(state.experiment, observed),
        report.servers(state.experiment, observed, known=_known_servers(inputs)),
        trainer_update,
    ]
    status = inputs.updated(
        updates,
        phase=phase,
        message=_message([inputs.acceptance(), *updates], phase),
        servers=report.servers_status(state.experiment, observed, desired=inputs.spec.servers.replicas),
    )
    objects = _objects(inputs, job=job)
    waits = [_deadline_s(inputs, phase), wait_s]
    if inputs.refusal is not None or any(update.status != "True" for update in updates):
        waits.append(inputs.settings.waiting_s)
    due = [wait for wait in waits if wait is not None]
    return Plan(status, objects, _to_prune(inputs, objects), max(0.1, min(due)) if due else None)


def _suspend(inputs: PlanInputs) -> Plan:
    """Nothing is to run. Once begun it is finished, also when the flag is taken back meanwhile."""
    if inputs.status.attempt == 0:
        why = Reason("Suspended", "the run has not started: runPolicy.suspend is true")
        return Plan(
            inputs.updated([ConditionUpdate(report.SUSPENDED, "True", why)], phase="Suspended", message=why.message)
        )
    left = report.ending_pods(inputs.observed)
    objects = _base(inputs)
    if left or _live_jobs(inputs.observed) or inputs.observed.objects.get("StatefulSet"):
        why = Reason(report.SUSPENDING, f"waits for the end of pods: {', '.join(left) or 'none is left'}")
        status = inputs.updated([ConditionUpdate(report.SUSPENDED, "False", why)], message=f"suspending: {why.message}")
        return Plan(status, objects, _to_prune(inputs, objects), inputs.settings.waiting_s)
    why = Reason("Suspended", "nothing runs; runPolicy.suspend: false goes on from the last recovery checkpoint")
    stopped = Reason("Suspended", "the run is suspended")
    status = inputs.updated(
        [
            ConditionUpdate(report.SUSPENDED, "True", why),
            ConditionUpdate(report.SERVERS, "False", stopped),
            ConditionUpdate(report.TRAINER, "False", stopped),
        ],
        phase="Suspended",
        message=why.message,
        active_since=None,
        attempt_since=None,
        servers=report.servers_status(inputs.state.experiment, inputs.observed, desired=0),
    )
    wait_s = None if inputs.spec.run_policy.suspend else 0.1
    return Plan(status, objects, _to_prune(inputs, objects), wait_s)


def _end(inputs: PlanInputs, phase: str, why: Reason) -> Plan:
    """The run is over: what the servers hold is given back at once."""
    ended = Reason("Finished", "the run is over")
    status = inputs.updated(
        [
            ConditionUpdate(report.SUCCEEDED, "True" if phase == "Succeeded" else "False", why),
            ConditionUpdate(report.SERVERS, "False", ended),
            ConditionUpdate(report.TRAINER, "False", ended),
        ],
        phase=phase,
        message=why.message,
        completion_time=inputs.status.completion_time or show(inputs.now),
    )
    return _after_end(_with_status(inputs, status))


def _after_end(inputs: PlanInputs) -> Plan:
    """Servers are freed, the finished trainer's pods stay for their logs, and at last the experiment goes."""
    ttl = inputs.spec.run_policy.ttl_seconds_after_finished
    left_s = None if ttl is None else ttl - seconds_since(inputs.status.completion_time, inputs.now)
    status = inputs.updated(servers=report.servers_status(inputs.state.experiment, inputs.observed, desired=0))
    objects = (_volume_claim(inputs),)
    prune = tuple(
        (kind, name)
        for kind, name in _to_prune(inputs, objects)
        if kind in (*SERVER_KINDS, "Job") or (kind, name) == ("Service", resource_names.servers(inputs.state.name))
    )
    return Plan(status, objects, prune, left_s if left_s is None else max(0.1, left_s), delete=_is_over(left_s))


def _objects(inputs: PlanInputs, *, job: bool) -> tuple[Manifest, ...]:
    build = inputs.build(inputs.status.attempt)
    replicas = inputs.spec.servers.replicas
    made = [*_base(inputs), servers.disruption_budget(build), servers.server_set(build, replicas)]
    if job:
        made += _job(inputs, build)
    return tuple(made)


def _base(inputs: PlanInputs) -> tuple[Manifest, ...]:
    """What every state of a started run has."""
    build, name = inputs.build(inputs.status.attempt), inputs.state.name
    return (
        shared.config_map(build),
        shared.api_key_secret(build),
        shared.service_account(build),
        _volume_claim(inputs),
        shared.network_policy(build),
        shared.headless_service(build, resource_names.servers(name), resource_names.SERVER, resource_names.SERVER_PORT),
        shared.headless_service(
            build, resource_names.trainer(name), resource_names.TRAINER, resource_names.MASTER_PORT
        ),
    )


def _volume_claim(inputs: PlanInputs) -> Manifest:
    existing = inputs.observed.get("PersistentVolumeClaim", resource_names.volume_claim(inputs.state.name))
    return shared.volume_claim(inputs.build(inputs.status.attempt), existing)


def _job(inputs: PlanInputs, build: Build) -> list[Manifest]:
    """The Job, unless it was made from another spec: its template never changes, the next attempt has the new one."""
    wanted, existing = trainer.trainer_job(build), inputs.job()
    made_from = existing and (existing["metadata"].get("annotations") or {}).get(DIGEST)
    same = existing is None or made_from == wanted["metadata"]["annotations"][DIGEST]
    return [wanted] if same else []


def _to_prune(inputs: PlanInputs, objects: Iterable[Manifest]) -> tuple[tuple[str, str], ...]:
    """Children that are not wanted any more. The last finished Jobs stay, for the logs of their pods."""
    wanted = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in objects}
    name, attempt = inputs.state.name, inputs.status.attempt
    current = resource_names.trainer_job(name, attempt)
    last = (current, resource_names.trainer_job(name, attempt - 1))
    result: list[tuple[str, str]] = []
    for kind, found in inputs.observed.objects.items():
        for obj in found:
            key = (kind, str(obj["metadata"]["name"]))
            if kind in KEPT_KINDS or key in wanted or is_terminating(obj):
                continue
            if kind == "Job" and key[1] in last and _is_finished(obj):
                continue
            if key == ("Job", current) and _job_stays(inputs):
                continue
            result.append(key)
    return tuple(result)


def _job_stays(inputs: PlanInputs) -> bool:
    return inputs.status.phase in ("Starting", "Running") and not (
        inputs.spec.run_policy.suspend or _suspending(inputs.status)
    )


def _blockers(inputs: PlanInputs) -> list[str]:
    """Pods of the trainer that have to end before the Job of the current attempt is made: two would share a volume."""
    attempt, job = str(inputs.status.attempt), inputs.job()
    pods = [pod for pod in inputs.observed.pods(resource_names.TRAINER) if is_active(pod)]
    return [
        str(pod["metadata"]["name"])
        for pod in pods
        if label(pod, resource_names.ATTEMPT) != attempt or job is None or is_terminating(job)
    ]


def _known_servers(inputs: PlanInputs) -> int:
    """Servers whose addresses the running trainer was given."""
    job = inputs.job()
    told = job and (job["metadata"].get("annotations") or {}).get(trainer.SERVERS)
    return int(told) if told else int(inputs.spec.max_replicas)


def _deadline_s(inputs: PlanInputs, phase: str) -> float | None:
    """Seconds until the nearest deadline."""
    policy, status = inputs.spec.run_policy, inputs.status
    left: list[float] = []
    if policy.active_deadline_seconds is not None:
        left.append(policy.active_deadline_seconds - seconds_since(status.active_since, inputs.now))
    if policy.pre_running_deadline_seconds is not None and phase == "Starting":
        left.append(policy.pre_running_deadline_seconds - seconds_since(status.attempt_since, inputs.now))
    return min(left, default=None)


def _why_not_running(inputs: PlanInputs, trainer_update: ConditionUpdate) -> Reason:
    if inputs.refusal is not None:
        return inputs.refusal
    if trainer_update.status != "True":
        return trainer_update.why
    return report.servers(inputs.state.experiment, inputs.observed, known=_known_servers(inputs)).why


def _message(updates: Sequence[ConditionUpdate], phase: str) -> str:
    """What is worth a sentence: the first thing that is wrong, else the first that is waited for."""
    open_ones = [update.why for update in updates if update.status != "True"]
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


def _unfinished() -> ConditionUpdate:
    return ConditionUpdate(report.SUCCEEDED, "Unknown", Reason("Running", "the run is not over"))


def _with_status(inputs: PlanInputs, status: ExperimentStatus) -> PlanInputs:
    return replace(inputs, state=replace(inputs.state, status=status))
