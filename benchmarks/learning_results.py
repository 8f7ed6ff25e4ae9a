"""Results of training runs: what one run records, and the figures over several seeds. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

WINDOW = 3  # steps of a mean reward
FINAL_STEPS = 5  # the final reward is their mean
GOAL = 0.8  # reward to reach
COLLAPSED = 0.25  # mean reward ÷ best mean reward, as in areal_trainer.health
# 97.5 % quantiles of Student's t distribution with 1 to 30 degrees of freedom.
QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Record:
    """A finished run: seconds and mean reward of each step."""

    seconds: list[float]
    rewards: list[float]
    warned: int = 0  # steps with warnings about the policy's health
    staleness: float | None = None  # mean versions that samples lagged, from the third step on
    warnings: dict[str, int] = field(default_factory=dict)  # steps that had each warning

    @property
    def final(self) -> float:
        """Mean reward of the last steps."""
        return statistics.fmean(self.rewards[-FINAL_STEPS:])

    @property
    def step_s(self) -> float:
        """Mean seconds of the steps after the first. Asynchronous steps alternate between short and long ones."""
        return statistics.fmean(self.seconds[1:] or self.seconds)

    @property
    def collapsed(self) -> bool:
        """Whether the mean reward of the last steps is far below its best."""
        means = [statistics.fmean(part) for part in windows(self.rewards)]
        return max(means) > 0 and means[-1] < COLLAPSED * max(means)

    @property
    def steps_to_goal(self) -> int | None:
        """Steps until the mean reward of ``WINDOW`` of them reaches ``GOAL``; None if it never does."""
        ends = (end for end, part in enumerate(windows(self.rewards), WINDOW) if statistics.fmean(part) >= GOAL)
        return next(ends, None)

    @property
    def seconds_to_goal(self) -> float | None:
        """Seconds of these steps; None if it never does."""
        steps = self.steps_to_goal
        return None if steps is None else sum(self.seconds[:steps])


@dataclass(frozen=True)
class Cell:
    """A task under one setting and mode, over seeds; ``reason`` if it did not run."""

    task: str
    setting: str
    mode: str
    records: list[Record]
    reason: str = ""

    def figures(self) -> dict[str, Any]:
        """Figures for the table and for results.json."""
        names = {"task": self.task, "setting": self.setting, "mode": self.mode, "seeds": len(self.records)}
        if not self.records:
            return {**names, "not_run": self.reason}
        mean, half = interval([record.final for record in self.records])
        reached = [seconds for record in self.records if (seconds := record.seconds_to_goal) is not None]
        steps = [count for record in self.records if (count := record.steps_to_goal) is not None]
        ages = [record.staleness for record in self.records if record.staleness is not None]
        return {
            **names,
            "final_reward": mean,
            "final_reward_95": half,
            "collapsed": sum(record.collapsed for record in self.records),
            "warned_steps": sum(record.warned for record in self.records),
            "reached_goal": len(reached),
            "steps_to_goal": statistics.median(steps) if steps else None,
            "seconds_to_goal": statistics.median(reached) if reached else None,
            "seconds_per_step": statistics.median(record.step_s for record in self.records),
            "staleness": statistics.fmean(ages) if ages else None,
            "runs": [asdict(record) for record in self.records],
        }


def windows(values: Sequence[float]) -> list[Sequence[float]]:
    """Every ``WINDOW`` consecutive values; all of them if there are fewer."""
    return [values[end - WINDOW : end] for end in range(WINDOW, len(values) + 1)] or [values]


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the length of its 95 % confidence interval by Student's t; None for one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    quantile = QUANTILES[min(len(values) - 1, len(QUANTILES)) - 1]
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))


def table(cells: Sequence[Cell]) -> str:
    """A Markdown table."""
    lines = [
        "| task | setting | mode | seeds | final reward (95 %) | collapsed | steps with warnings "
        f"| reached {GOAL} | steps, s to {GOAL} | s per step | staleness |",
        "|" + "---|" * 11,
    ]
    for cell in cells:
        numbers = cell.figures()
        head = f"| {cell.task} | {cell.setting} | {cell.mode} |"
        if not cell.records:
            lines.append(f"{head} not run: {cell.reason} |" + " |" * 7)
            continue
        half = numbers["final_reward_95"]
        reward = f"{numbers['final_reward']:.3f}" + (f" ± {half:.3f}" if half is not None else "")
        reached = numbers["seconds_to_goal"]
        time = "" if reached is None else f"{numbers['steps_to_goal']:g}, {reached:.0f}"
        age = "" if numbers["staleness"] is None else f"{numbers['staleness']:.2f}"
        lines.append(
            f"{head} {numbers['seeds']} | {reward} | {numbers['collapsed']} | {numbers['warned_steps']} | "
            f"{numbers['reached_goal']} | {time} | {numbers['seconds_per_step']:.2f} | {age} |"
        )
    return "\n".join(lines)
