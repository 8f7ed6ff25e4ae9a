"""What a trainer tells the operator: the body of its progress report."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import ConfigDict, Field

from areal_api.section import CamelSection

MAX_BODY_BYTES = 65536
INTERVAL_S = 3.0  # the least time between two reports


class ProgressReport(CamelSection):
    """Progress after a step. Its keys are those of the status. Unknown keys are ignored: trainers may be newer."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True, allow_inf_nan=False)

    step: int = Field(ge=0, le=2**53, description="Training steps done.")
    total_steps: int | None = Field(None, ge=0, le=2**53, description="Training steps of the run.")
    version: int | None = Field(None, ge=0, le=2**53, description="Version of the published weights.")
    reward: float | None = Field(None, description="Mean task reward of the last step.")
    eval_reward: float | None = Field(None, description="Mean task reward of the last evaluation.")
    staleness: float | None = Field(None, description="Mean weight versions that the last batch lagged.")
    tokens_per_second: float | None = Field(None, description="Trained tokens a second.")
    servers_current: int | None = Field(None, ge=0, le=2**31, description="Servers that hold the current weights.")
    servers_behind: int | None = Field(None, ge=0, le=2**31, description="Servers that answer, but hold other weights.")

    @property
    def progress(self) -> str:
        """``step/totalSteps``."""
        return f"{self.step}/{self.total_steps}" if self.total_steps is not None else str(self.step)


def report_of(stats: Mapping[str, float | None]) -> ProgressReport:
    """The report of a line of statistics, as exact as a column shows it. What is absent or not finite is left out."""

    def number(name: str, digits: int = 4) -> float | None:
        value = stats.get(name)
        return round(float(value), digits) if value is not None and math.isfinite(value) else None

    def count(name: str) -> int | None:
        value = number(name)
        return None if value is None else int(value)

    return ProgressReport(
        step=count("step") or 0,
        total_steps=count("total_steps"),
        version=count("version"),
        reward=number("task_reward/avg"),
        eval_reward=number("eval-rollout/reward"),
        staleness=number("staleness/avg", 2),
        tokens_per_second=number("tokens_per_second", 1),
        servers_current=count("rollout/servers_current"),
        servers_behind=count("rollout/servers_behind"),
    )
