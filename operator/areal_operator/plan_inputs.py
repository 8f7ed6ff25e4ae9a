"""What a plan depends on, and the questions about it that several phases of a run ask. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from areal_api import conditions, resource_names
from areal_api.experiment import GRPOExperiment
from areal_api.status import TERMINAL_PHASES, AttemptOutcome, ExperimentStatus, shortened
from areal_operator import status as report
from areal_operator.clock import not_after, show
from areal_operator.diagnosis import Reason
from areal_operator.fit import fit
from areal_operator.gangs import gang_of
from areal_operator.manifests import trainer
from areal_operator.manifests.base import Build
from areal_operator.observed import ExperimentState, Object, Observed, annotation
from areal_operator.outcome import attempt_outcome
from areal_operator.queueing import kueue
from areal_operator.queueing.gate import Gate, gate_of
from areal_operator.settings import Settings
from areal_operator.status import ConditionStatus, ConditionUpdate


@dataclass(frozen=True)
class PlanInputs:
    """Everything that a plan depends on."""

    state: ExperimentState
    observed: Observed
    now: datetime
    settings: Settings
    api_key: str
    gateway_key: str
    rejection: Reason | None = None  # by the API server, when the objects were last applied
    contested: Reason | None = None  # another controller keeps changing an object
    gate: Gate = field(default_factory=Gate)
    written: GRPOExperiment | None = None  # the experiment as its user wrote it; None: as in the state

    @property
    def requested(self) -> GRPOExperiment:
        """The experiment as its user wrote it, before Kueue has placed its pods."""
        return self.written or self.state.experiment

    @property
    def status(self) -> ExperimentStatus:
        """The current status."""
        return self.state.status

    @property
    def spec(self) -> Any:
        """The spec."""
        return self.state.experiment.spec

    def build(self, attempt: int) -> Build:
        """Input of the manifest builders; of the pods of an attempt, see ``attempt_build``."""
        state, claim = self.state, self.claim()
        modes = None if claim is None else tuple(claim["spec"].get("accessModes") or ())
        return Build(
            state.experiment,
            state.namespace,
            state.uid,
            attempt,
            self.api_key,
            self.gateway_key,
            self.settings,
            config_text=state.config_yaml,
            claim_access_modes=modes,
        )

    def attempt_build(self, attempt: int) -> Build:
        """Input of the builders of the pods of an attempt. Raises ``ValueError`` for what no scheduler starts whole."""
        build = self.build(attempt)
        return replace(build, gang=gang_of(build, self.observed))

    def job(self) -> Object | None:
        """The Job of the current attempt."""
        return self.observed.get("Job", resource_names.trainer_job(self.state.name, self.status.attempt))

    def claim(self) -> Object | None:
        """The volume claim."""
        return self.observed.get("PersistentVolumeClaim", resource_names.volume_claim(self.state.name))

    def addressed(self) -> int:
        """Number of servers whose addresses the running trainer has; without one, that the next one gets."""
        job = self.job()
        text = None if job is None else annotation(job, trainer.SERVERS)
        return int(text) if text and text.isascii() and text.isdecimal() else int(self.spec.max_replicas)

    def outcome(self) -> AttemptOutcome | None:
        """How the current attempt ended: as recorded, else as observed now."""
        if self.status.outcome is not None or self.status.attempt == 0:
            return self.status.outcome
        seen = attempt_outcome(
            self.observed,
            job_name=resource_names.trainer_job(self.state.name, self.status.attempt),
            attempt=self.status.attempt,
            created=self.status.job_uid is not None,
            nodes=self.spec.trainer.nodes,
        )
        return None if seen is None else seen.model_copy(update={"time": show(self.now)})

    def acceptance(self) -> ConditionUpdate:
        """Whether the experiment can be carried out."""
        if self.rejection is not None:
            return ConditionUpdate(conditions.ACCEPTED, "False", self.rejection)
        if self.state.unknown_fields:
            text = f"this version of the operator does not know {', '.join(self.state.unknown_fields)}: without effect"
            reason = Reason(conditions.UNKNOWN_FIELDS, f"{text}; upgrade the operator")
            return ConditionUpdate(conditions.ACCEPTED, "True", reason)
        return ConditionUpdate(conditions.ACCEPTED, "True", Reason("Accepted", "the experiment is valid"))

    def contention(self) -> list[ConditionUpdate]:
        """Whether another controller keeps changing an object; empty while none ever did."""
        if self.contested is not None:
            return [ConditionUpdate(conditions.CONTESTED, "True", self.contested)]
        if report.find(self.status.conditions, conditions.CONTESTED) is None:
            return []
        settled = Reason(conditions.SETTLED, "no other controller changes the experiment's objects")
        return [ConditionUpdate(conditions.CONTESTED, "False", settled)]

    def admission(self) -> list[ConditionUpdate]:
        """Whether the queue has admitted the run; empty while it never had one."""
        gate = self.gate
        if gate.queue is None or gate.reason is None:
            known = report.find(self.status.conditions, conditions.ADMITTED) is not None
            if not known or self.status.phase in TERMINAL_PHASES:
                return []
            reason = Reason(conditions.NOT_QUEUED, "the experiment no longer names a queue")
            return [ConditionUpdate(conditions.ADMITTED, "True", reason)]
        truth: ConditionStatus = "True" if gate.open else "Unknown" if gate.frozen else "False"
        return [ConditionUpdate(conditions.ADMITTED, truth, gate.reason)]

    def through_gate(self) -> PlanInputs:
        """The inputs with the decision of the queue, and with the experiment as it was admitted.

        Raises ``ValueError`` for what the queue cannot take.
        """
        state = self.state
        if self.status.phase in TERMINAL_PHASES:
            existing = self.observed.get(kueue.WORKLOAD, resource_names.workload(state.name))
            return replace(self, gate=Gate(workload=existing))
        gate = gate_of(
            self.build(self.status.attempt),
            self.observed,
            supported=self.settings.kueue,
            suspended=self.spec.run_policy.suspend,
            labels=state.experiment.metadata.labels,
        )
        placed = gate.placement.placed(state.experiment)
        return replace(self, gate=gate, state=replace(state, experiment=placed), written=state.experiment)

    def updated(self, updates: Sequence[ConditionUpdate] = (), **changes: Any) -> ExperimentStatus:
        """The status with ``changes`` and condition ``updates``."""
        merged = report.updated_conditions(
            self.status.conditions,
            [
                self.acceptance(),
                fit(self.spec),
                *self.contention(),
                *self.admission(),
                *report.policy_health(self.status),
                *updates,
            ],
            now=self.now,
            generation=self.state.generation,
        )
        changes = {"conditions": merged, "observed_generation": self.state.generation, **changes}
        changes["message"] = shortened(changes.get("message", self.status.message))
        return self.status.model_copy(update=changes)

    def with_status(self, status: ExperimentStatus) -> PlanInputs:
        """The same inputs with another status."""
        return replace(self, state=replace(self.state, status=status))


def without_future_times(status: ExperimentStatus, now: datetime) -> ExperimentStatus:
    """Times that an operator with a faster clock wrote become ``now``, so that nothing waits for its clock."""
    times = {
        name: not_after(getattr(status, name), now) for name in ("attempt_since", "active_since", "completion_time")
    }
    changes: dict[str, Any] = {name: time for name, time in times.items() if time != getattr(status, name)}
    if status.outcome is not None and not_after(status.outcome.time, now) != status.outcome.time:
        changes["outcome"] = status.outcome.model_copy(update={"time": not_after(status.outcome.time, now)})
    return status.model_copy(update=changes) if changes else status
