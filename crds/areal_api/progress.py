"""Body of a trainer's progress report to the operator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from areal_api import health, stat_names
from areal_api.bounds import MAX_INTEGER
from areal_api.section import CamelSection

MAX_BODY_BYTES = 65536
MAX_WARNINGS = 32
INTERVAL_S = 3.0  # minimum time between two reports

WarningName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z_]{0,39}$")]


class ProgressReport(CamelSection):
    """Progress after a step, with the keys of the status. Unknown keys are ignored, because trainers may be newer."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True, allow_inf_nan=False)

    step: int = Field(ge=0, le=MAX_INTEGER, description="Training steps done.")
    total_steps: int | None = Field(None, ge=0, le=MAX_INTEGER, description="Training steps of the run.")
    version: int | None = Field(None, ge=0, le=MAX_INTEGER, description="Version of the published weights.")
    reward: float | None = Field(None, description="Mean task reward of the last step.")
    eval_reward: float | None = Field(None, description="Mean task reward of the last evaluation.")
    staleness: float | None = Field(None, description="Mean weight versions that the last batch lagged.")
    tokens_per_second: float | None = Field(None, description="Trained tokens per second.")
    servers_current: int | None = Field(None, ge=0, le=2**31, description="Servers with the current weights.")
    servers_behind: int | None = Field(None, ge=0, le=2**31, description="Servers that respond but have other weights.")
    cache_hit_rate: float | None = Field(None, description="Share of prompt tokens that were found in a prefix cache.")
    rollout_wait: float | None = Field(
        None, ge=0, le=1, description="Share of the last step that the trainer waited for rollouts."
    )
    servers_idle: float | None = Field(
        None, ge=0, le=1, description="Share of the servers' time in the last step without any request."
    )
    agent_sessions: int | None = Field(None, ge=0, le=2**31, description="Agents' sessions with a reward.")
    agent_sessions_lost: int | None = Field(
        None, ge=0, le=2**31, description="Agents' sessions without a reward, expired, or with outdated tokens."
    )
    agent_errors: int | None = Field(None, ge=0, le=2**31, description="Agents' requests that got an error.")
    health_warnings: list[WarningName] | None = Field(
        None, max_length=MAX_WARNINGS, description="Warnings about the policy after the last step, by name."
    )
    collapsed: bool | None = Field(None, description="Whether the policy had collapsed after the last step.")
    rollbacks: int | None = Field(None, ge=0, le=2**31, description="Rollbacks after a collapse.")

    @property
    def progress(self) -> str:
        """``step/totalSteps``."""
        return f"{self.step}/{self.total_steps}" if self.total_steps is not None else str(self.step)


def report_of(stats: Mapping[str, float | None]) -> ProgressReport:
    """The report of a line of statistics, rounded as shown in columns. Missing and non-finite values are left out."""

    def number(name: str, digits: int = 4) -> float | None:
        value = stats.get(name)
        return round(float(value), digits) if value is not None and math.isfinite(value) else None

    def count(name: str) -> int | None:
        value = number(name)
        return None if value is None else int(value)

    def agents(*names: str) -> int | None:
        counts = [count(f"{stat_names.AGENTS}{name}") for name in names]
        return None if None in counts else sum(value for value in counts if value is not None)

    return ProgressReport(
        step=count(stat_names.STEP) or 0,
        total_steps=count(stat_names.TOTAL_STEPS),
        version=count(stat_names.VERSION),
        reward=number(stat_names.mean(stat_names.TASK_REWARD)),
        eval_reward=number(stat_names.EVAL_REWARD),
        staleness=number(stat_names.mean(stat_names.STALENESS), 2),
        tokens_per_second=number(stat_names.TOKENS_PER_SECOND, 1),
        servers_current=count(stat_names.SERVERS_CURRENT),
        servers_behind=count(stat_names.SERVERS_BEHIND),
        cache_hit_rate=number(stat_names.CACHE_HIT_RATE),
        rollout_wait=number(stat_names.ROLLOUT_WAIT),
        servers_idle=number(stat_names.SERVERS_IDLE),
        agent_sessions=agents("rewarded"),
        agent_sessions_lost=agents("abandoned", "expired", "stale"),
        agent_errors=agents("refused", "failed"),
        health_warnings=list(health.warnings_of(stats)) if health.COLLAPSED in stats else None,
        collapsed=stats[health.COLLAPSED] == 1.0 if health.COLLAPSED in stats else None,
        rollbacks=count(health.ROLLBACKS),
    )
