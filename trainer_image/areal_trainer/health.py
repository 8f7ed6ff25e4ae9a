"""Detection of a collapse and its precursors from the statistics of each step.

Precursors are warnings. A collapse is a mean reward over the last steps far below the best mean over as many steps; it
is what remains when the policy has drifted too far from its samples.

The best of many means is a lucky one, and the rewards of one prompt's samples are alike: with problems that are nearly
always or nearly never solved, only the number of prompts counts. So a mean covers at least ``PROMPTS`` prompts, and a
fall counts only above ``SIGNIFICANT`` standard errors, which are measured from the groups' mean rewards.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from areal_api import health
from areal_api.stat_names import ACTOR_PREFIX, GROUPS_WITHOUT_SIGNAL, REWARD_ERROR, TASK_REWARD, mean

WINDOW = 3  # steps of a mean reward, at least
PROMPTS = 96  # of a mean reward, at least
COLLAPSED = 0.25  # reward ÷ best reward below which the policy has collapsed
SIGNIFICANT = 6.0  # standard errors by which a reward must fall below the best of many
DECLINED = 0.6  # reward ÷ best reward below which a decline is reported
MAX_BEHAVIOUR_KL = 0.1  # nats per token
MIN_TOKENS_KEPT = 0.5  # share of tokens that masks of stale samples leave in the loss
MAX_LOGPROB_DIFF = 0.1  # nats per token between server and trainer under the same version
MIN_ENTROPY = 0.05  # entropy ÷ entropy of the first step
MIN_GRADIENT = 1e-6
MAX_WITHOUT_SIGNAL = 0.95  # share of groups with equal rewards
LOOK_BACK = 10  # most steps between a precursor and the collapse that it is traced back from


@dataclass(frozen=True)
class Health:
    """State of the policy after a step."""

    warnings: Mapping[str, str]  # explanation by the name of the warning, one of ``areal_api.health.WARNINGS``
    collapsed: bool
    reward_best: float | None  # best mean reward over the steps of ``window``
    reward_best_error: float | None  # its standard error
    precursor_age: int  # steps since the first statistics that led to the present warnings; 0 is this step
    statistics: dict[str, float]


def window(prompts: int) -> int:
    """Steps of a mean reward, for batches of so many prompts."""
    return max(WINDOW, -(-PROMPTS // prompts))


class HealthMonitor:
    """Observes the statistics of every step, with batches of ``prompts`` prompts."""

    def __init__(
        self, *, prompts: int, reward_best: float | None = None, reward_best_error: float | None = None
    ) -> None:
        """``reward_best`` and its error are from before a resume."""
        self._prompts = prompts
        self._window = window(prompts)
        self._best, self._best_error = reward_best, reward_best_error
        self._rewards: deque[float] = deque(maxlen=self._window)
        self._variances: deque[float] = deque(maxlen=self._window)  # of each reward, squared standard errors
        self._low, self._high = math.inf, -math.inf  # of the rewards of all samples
        self._entropy_first: float | None = None
        self._absent: set[str] = set()  # warnings that some step did not have: others say nothing about a change
        self._spans: deque[int] = deque(maxlen=LOOK_BACK)  # steps that the warnings of each last step depend on

    def observe(self, stats: Mapping[str, float]) -> Health:
        """Assess the policy after a step with these statistics, which are the same on every rank."""
        relative = self._relative_reward(stats)
        collapsed = relative < COLLAPSED
        warnings = self._drift(stats) | self._signal(stats, relative)
        if relative < DECLINED:
            text = f"the reward is {relative:.0%} of its best mean over {self._window} steps ({self._best:.3g})"
            warnings[health.DECLINED] = text
        changed = self._absent.intersection(warnings)
        self._spans.append(self._window if health.DECLINED in changed else min(1, len(changed)))
        self._absent.update(name for name in health.WARNINGS if name not in warnings)
        numbers = {f"{health.PREFIX}{name}": float(name in warnings) for name in health.WARNINGS} | {
            health.COUNT: float(len(warnings)),
            health.COLLAPSED: float(collapsed),
            health.RELATIVE_REWARD: relative,
        }
        return Health(warnings, collapsed, self._best, self._best_error, self._precursor_age(), numbers)

    def _precursor_age(self) -> int:
        """Warnings belong together unless ``WINDOW`` steps without any separate them."""
        first = gap = 0
        for age, span in enumerate(reversed(self._spans)):
            gap = 0 if span else gap + 1
            first = max(first, age + span - 1) if span else first
            if gap == WINDOW:
                break
        return first

    def _relative_reward(self, stats: Mapping[str, float]) -> float:
        """Mean reward of the last steps ÷ the best such mean; 1 unless it is positive and the fall is significant."""
        reward = stats[mean(TASK_REWARD)]
        self._low = min(self._low, stats[f"{TASK_REWARD}/min"])
        self._high = max(self._high, stats[f"{TASK_REWARD}/max"])
        self._rewards.append(reward)
        measured = stats.get(f"{ACTOR_PREFIX}{REWARD_ERROR}")
        self._variances.append(self._largest_variance(reward) if measured is None else measured**2)
        if len(self._rewards) < self._window:
            return 1.0
        recent = math.fsum(self._rewards) / self._window
        error = math.sqrt(math.fsum(self._variances)) / self._window
        if self._best is None or recent > self._best:
            self._best, self._best_error = recent, error
        if self._best_error is None:  # from an older checkpoint
            self._best_error = math.sqrt(self._largest_variance(self._best) / self._window)
        if self._best <= 0 or self._best - recent <= SIGNIFICANT * math.hypot(self._best_error, error):
            return 1.0
        return recent / self._best

    def _largest_variance(self, reward: float) -> float:
        """Of a mean over a batch, if every prompt had the lowest or the highest reward (Bhatia and Davis 2000)."""
        return max(0.0, (reward - self._low) * (self._high - reward)) / self._prompts

    def _drift(self, stats: Mapping[str, float]) -> dict[str, str]:
        """Signs that samples and policy differ."""
        warnings = {}
        kl = stats.get(f"{ACTOR_PREFIX}behave_kl/avg", 0.0)
        if kl > MAX_BEHAVIOUR_KL:
            text = f"the KL from the behaviour policy is {kl:.2g} nats per token (above {MAX_BEHAVIOUR_KL})"
            warnings[health.DRIFT] = text
        kept = stats.get(f"{ACTOR_PREFIX}unclipped_behave_tokens/avg", 1.0)
        kept *= stats.get(f"{ACTOR_PREFIX}m2po_kept_tokens/avg", 1.0)  # M2PO masks before the others
        if kept < MIN_TOKENS_KEPT:
            warnings[health.MASKED] = f"masks of stale samples leave only {kept:.0%} of the tokens in the loss"
        difference = stats.get(f"{ACTOR_PREFIX}rollout_logprob_diff_current/avg", 0.0)
        if difference > MAX_LOGPROB_DIFF:
            text = f"servers and trainer differ by {difference:.2g} nats per token under the same weights"
            warnings[health.MISMATCH] = text
        return warnings

    def _signal(self, stats: Mapping[str, float], relative: float) -> dict[str, str]:
        """Signs that nothing is left to learn from, which is no fault of a policy at its best reward."""
        warnings = {}
        without = stats.get(f"{ACTOR_PREFIX}{GROUPS_WITHOUT_SIGNAL}", 0.0)
        low = self._low < self._high and stats[mean(TASK_REWARD)] <= (self._low + self._high) / 2
        if without > MAX_WITHOUT_SIGNAL and (low or self._high <= 0):
            warnings[health.NO_SIGNAL] = f"{without:.0%} of the groups have equal rewards, most of them low"
        entropy = stats.get(f"{ACTOR_PREFIX}entropy/avg")
        if self._entropy_first is None:
            self._entropy_first = entropy
        if relative >= DECLINED:
            return warnings
        if entropy is not None and self._entropy_first and entropy < MIN_ENTROPY * self._entropy_first:
            text = f"the entropy fell from {self._entropy_first:.3g} to {entropy:.3g} nats per token"
            warnings[health.LOW_ENTROPY] = text
        norm = stats.get(f"{ACTOR_PREFIX}grad_norm", 1.0)
        if norm < MIN_GRADIENT:
            warnings[health.NO_GRADIENT] = f"the gradient norm is {norm:.2g}: the groups have equal rewards"
        return warnings
