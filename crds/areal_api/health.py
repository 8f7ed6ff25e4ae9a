"""Warnings about the health of a policy: the trainer finds them, the launcher and the operator show them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

PREFIX: Final = "health/"  # of the statistics; each warning is 1 in the steps that have it, else 0
COUNT: Final = "health/warnings"
COLLAPSED: Final = "health/collapsed"
RELATIVE_REWARD: Final = "health/relative_reward"
ROLLBACKS: Final = "health/rollbacks"

DRIFT: Final = "drift"
MASKED: Final = "masked"
MISMATCH: Final = "mismatch"
DECLINED: Final = "declined"
LOW_ENTROPY: Final = "low_entropy"
NO_GRADIENT: Final = "no_gradient"
NO_SIGNAL: Final = "no_signal"

WARNINGS: Final[Mapping[str, str]] = {
    DRIFT: "the KL from the policy that generated the samples is high",
    MASKED: "masks of stale samples drop most tokens",
    MISMATCH: "servers and trainer compute different log-probs with the same weights",
    DECLINED: "the reward is far below its best",
    LOW_ENTROPY: "the entropy is far below that of the first step",
    NO_GRADIENT: "the gradient is 0",
    NO_SIGNAL: "nearly all groups have equal rewards, most of them low",
}
COLLAPSE_MESSAGE: Final = "the policy collapsed"  # begins the trainer's last message if it ends because of that


def warnings_of(stats: Mapping[str, float | None]) -> tuple[str, ...]:
    """Names of the warnings in a line of statistics."""
    return tuple(name for name in WARNINGS if stats.get(PREFIX + name) == 1.0)


def describe(warnings: Collection[str]) -> str:
    """The texts of known warnings, in one sentence."""
    return "; ".join(text for name, text in WARNINGS.items() if name in warnings)
