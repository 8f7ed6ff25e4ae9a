"""What the operator says about an experiment."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from areal_api.section import CamelSection

Phase = Literal["Pending", "Starting", "Running", "Suspended", "Succeeded", "Failed"]
TERMINAL_PHASES: tuple[Phase, ...] = ("Succeeded", "Failed")


class StatusSection(CamelSection):
    """A part of the status. Unknown keys are ignored, so that an older operator reads what a newer one wrote."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)


class Condition(StatusSection):
    """One aspect of the state, as everywhere in Kubernetes."""

    type: str = Field(description="Aspect.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: str = Field("", description="One word why.")
    message: str = Field("", description="A sentence why.")
    last_transition_time: str | None = Field(None, description="When status last changed.")
    observed_generation: int | None = Field(None, description="Generation of the spec that was looked at.")


class ServersStatus(StatusSection):
    """Servers of the run."""

    ready: int = Field(0, ge=0, description="Servers that take requests.")
    desired: int = Field(0, ge=0, description="Servers that are wanted.")
    summary: str = Field("", description="ready/desired.")
    selector: str = Field("", description="Label selector of the server pods, for autoscalers.")


class ExperimentStatus(StatusSection):
    """State and progress of a run."""

    phase: Phase = Field("Pending", description="State; Succeeded and Failed stay.")
    conditions: list[Condition] = Field(default_factory=list, description="Aspects of the state, by type.")
    observed_generation: int | None = Field(None, description="Generation of the spec that was looked at.")
    message: str = Field("", description="A sentence about the state: what it waits for, or why the run ended.")
    attempt: int = Field(0, ge=0, description="Number of the current attempt; a restart begins a new one.")
    restarts: int = Field(0, ge=0, description="Restarts that count against runPolicy.backoffLimit.")
    disruptions: int = Field(
        0, ge=0, description="Restarts after disruptions (preemption, lost node, deleted pod); they do not count."
    )
    attempt_since: str | None = Field(None, description="When the current attempt began.")
    active_since: str | None = Field(
        None, description="When the run started or was resumed; runPolicy.activeDeadlineSeconds counts from here."
    )
    start_time: str | None = Field(None, description="When the first attempt started.")
    completion_time: str | None = Field(None, description="When the run succeeded or failed.")
    step: int | None = Field(None, ge=0, description="Training steps done.")
    total_steps: int | None = Field(None, ge=0, description="Training steps of the run.")
    progress: str = Field("", description="step/totalSteps.")
    version: int | None = Field(None, ge=0, description="Version of the published weights.")
    reward: float | None = Field(None, description="Mean task reward of the last step.")
    eval_reward: float | None = Field(None, description="Mean task reward of the last evaluation.")
    staleness: float | None = Field(
        None, description="Mean weight versions that the last batch lagged.", json_schema_extra={"unit": "versions"}
    )
    tokens_per_second: float | None = Field(
        None, description="Generated tokens a second.", json_schema_extra={"unit": "tokens/s"}
    )
    servers_current: int | None = Field(
        None, ge=0, description="Servers that held the current weights when the last batch was complete."
    )
    servers_behind: int | None = Field(
        None, ge=0, description="Servers that answered then, but held other weights: they get no requests."
    )
    servers: ServersStatus = Field(default_factory=ServersStatus, description="Servers of the run.")
