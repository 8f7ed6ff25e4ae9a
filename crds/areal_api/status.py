"""Status of an experiment, written by the operator."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from areal_api.bounds import MAX_STATUS_TEXT
from areal_api.section import CamelSection

Phase = Literal["Pending", "Queued", "Starting", "Running", "Suspended", "Succeeded", "Failed"]
TERMINAL_PHASES: tuple[Phase, ...] = ("Succeeded", "Failed")


def shortened(text: Any) -> Any:
    """``text`` with at most ``MAX_STATUS_TEXT`` characters: the API server refuses a status with a longer one."""
    is_too_long = isinstance(text, str) and len(text) > MAX_STATUS_TEXT
    return f"{text[: MAX_STATUS_TEXT - 1]}…" if is_too_long else text


Text = Annotated[str, BeforeValidator(shortened), Field(max_length=MAX_STATUS_TEXT)]


class StatusSection(CamelSection):
    """One section of the status. Unknown keys are ignored, so that an older operator can read a newer one's status."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)


class Condition(StatusSection):
    """A condition, as usual in Kubernetes."""

    type: Text = Field(description="Type of the condition.")
    status: Literal["True", "False", "Unknown"] = Field(description="Status of the condition.")
    reason: Text = Field("", description="Reason, as one CamelCase word.")
    message: Text = Field("", description="Explanation as a sentence.")
    last_transition_time: Text | None = Field(None, description="Time of the last change of status.")
    observed_generation: int | None = Field(None, description="Generation of the spec that was last processed.")


class PoolStatus(StatusSection):
    """Servers of one pool."""

    name: Text = Field(description="Name of the pool.")
    ready: int = Field(0, ge=0, description="Servers that accept requests.")
    desired: int = Field(0, ge=0, description="Desired number of servers.")


class ServersStatus(StatusSection):
    """Servers of the run."""

    ready: int = Field(0, ge=0, description="Servers that accept requests.")
    desired: int = Field(0, ge=0, description="Desired number of servers.")
    summary: Text = Field("", description="ready/desired.")
    selector: Text = Field("", description="Label selector of the pods of servers.replicas, for autoscalers.")
    pools: list[PoolStatus] | None = Field(
        None, description="Servers of each pool, which ready and desired include; absent without servers.pools."
    )


class AutoscaleStatus(StatusSection):
    """The number of servers that the operator has chosen, and why."""

    servers: int = Field(ge=0, description="Servers that the run should have.")
    reason: Text = Field("", description="Why it was changed last, as one CamelCase word; empty before a change.")
    message: Text = Field("", description="The change and what was measured, as a sentence.")
    since: Text | None = Field(None, description="Time of the last change.")
    admitted: int | None = Field(
        None, ge=0, description="Borrowed servers that the queue has admitted; absent without a queue."
    )
    queue: Text = Field("", description="Why another borrowed server is not admitted; empty if none waits.")

    @property
    def decision(self) -> tuple[int, str, str | None]:
        """What the operator has decided, without what the queue did."""
        return self.servers, self.reason, self.since


class AgentsStatus(StatusSection):
    """Pods of spec.agents and spec.tools."""

    ready: int = Field(0, ge=0, description="Pods that run.")
    desired: int = Field(0, ge=0, description="Desired number of pods.")
    restarts: int = Field(0, ge=0, description="Restarts of the containers of existing pods.")
    summary: Text = Field("", description="ready/desired.")


class AttemptOutcome(StatusSection):
    """How an attempt of the trainer ended. Kept here because its Job and pods may be deleted by others."""

    result: Literal["Succeeded", "Failed", "Disrupted"] = Field(
        description="Failed counts against runPolicy.backoffLimit, Disrupted does not."
    )
    reason: Text = Field("", description="Machine-readable reason.")
    message: Text = Field("", description="What happened.")
    time: Text | None = Field(None, description="When the operator first saw the outcome, by its own clock.")
    final: bool = Field(False, description="Whether another attempt would end the same way.")


class ExperimentStatus(StatusSection):
    """State and progress of a run."""

    phase: Phase = Field("Pending", description="Phase; Succeeded and Failed are final.")
    conditions: list[Condition] = Field(default_factory=list, description="Conditions, by type.")
    observed_generation: int | None = Field(None, description="Generation of the spec that was last processed.")
    message: Text = Field("", description="What the run is waiting for, or why it ended.")
    attempt: int = Field(0, ge=0, description="Number of the current attempt; every restart starts a new one.")
    restarts: int = Field(0, ge=0, description="Restarts that count towards runPolicy.backoffLimit.")
    disruptions: int = Field(
        0, ge=0, description="Restarts after disruptions (preemption, lost node, deleted pod); they do not count."
    )
    job_uid: Text | None = Field(
        None, description="UID of the current attempt's Job, once it was created; it is never created twice."
    )
    outcome: AttemptOutcome | None = Field(None, description="How the current attempt ended; null while it runs.")
    attempt_since: Text | None = Field(None, description="Start time of the current attempt.")
    active_since: Text | None = Field(
        None, description="Time when the run started or was resumed; runPolicy.activeDeadlineSeconds counts from it."
    )
    start_time: Text | None = Field(None, description="Start time of the first attempt.")
    completion_time: Text | None = Field(None, description="Time when the run succeeded or failed.")
    code: Text | None = Field(
        None, description="Commit or digest of the code of the current attempt, and digest of its requirements."
    )
    step: int | None = Field(None, ge=0, description="Completed training steps.")
    total_steps: int | None = Field(None, ge=0, description="Total training steps of the run.")
    progress: Text = Field("", description="step/totalSteps.")
    version: int | None = Field(None, ge=0, description="Version of the published weights.")
    reward: float | None = Field(None, description="Mean task reward of the last step.")
    eval_reward: float | None = Field(None, description="Mean task reward of the last evaluation.")
    staleness: float | None = Field(
        None, description="Mean staleness of the last batch.", json_schema_extra={"unit": "versions"}
    )
    tokens_per_second: float | None = Field(
        None, description="Generated tokens per second.", json_schema_extra={"unit": "tokens/s"}
    )
    servers_current: int | None = Field(
        None, ge=0, description="Servers that held the current weights when the last batch was completed."
    )
    servers_behind: int | None = Field(
        None, ge=0, description="Servers that were reachable then but held other weights; they receive no requests."
    )
    cache_hit_rate: float | None = Field(
        None, description="Share of prompt tokens of the last step that were found in a server's prefix cache."
    )
    rollout_wait: float | None = Field(None, description="Share of the last step that the trainer waited for rollouts.")
    servers_idle: float | None = Field(
        None,
        description="Share of the servers' time in the last step without any request, although they held the current "
        "weights or were receiving new ones.",
    )
    agent_sessions: int | None = Field(None, ge=0, description="Agents' sessions of the last step with a reward.")
    agent_sessions_lost: int | None = Field(
        None,
        ge=0,
        description="Agents' sessions of the last step that ended without a reward, expired, or had outdated tokens.",
    )
    agent_errors: int | None = Field(
        None, ge=0, description="Agents' requests of the last step that got an error from the session gateway."
    )
    health_warnings: list[str] | None = Field(
        None, description="Warnings about the policy after the last step, by name; see condition PolicyHealthy."
    )
    collapsed: bool | None = Field(None, description="Whether the policy had collapsed after the last step.")
    rollbacks: int | None = Field(None, ge=0, description="Rollbacks of the policy after a collapse.")
    servers: ServersStatus = Field(default_factory=ServersStatus, description="Servers of the run.")
    autoscale: AutoscaleStatus | None = Field(
        None, description="The operator's choice of the number of servers; absent without servers.autoscale."
    )
    agents: AgentsStatus | None = Field(None, description="Pods of agents and tools; absent without any.")
