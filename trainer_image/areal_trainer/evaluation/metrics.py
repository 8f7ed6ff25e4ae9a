"""Statistics of an evaluation: mean reward, pass@k and maj@k with confidence intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from areal_api import stat_names
from areal_api.estimates import estimate, pass_at, reported_k
from areal_api.evaluation import VALID
from areal_trainer.trajectory import Trajectory

FinalAnswer = Callable[[str], str | None]


@dataclass(frozen=True)
class SetResult:
    """The samples of one held-out set."""

    name: str
    problems: Sequence[Sequence[Trajectory]]  # with at least one sample each
    answers: Sequence[Sequence[str | None]] | None  # the final answer of each sample; None if the reward has none

    @property
    def reward(self) -> float:
        """Mean raw reward: over problems, of the mean over each problem's samples."""
        return fmean(_mean_reward(problem) for problem in self.problems)


def statistics_of(result: SetResult, *, samples: int, solved_reward: float) -> dict[str, float]:
    """Statistics of a set by name. ``samples`` per problem; problems with fewer count in the mean reward alone."""
    prefix = f"{stat_names.EVALUATION}{'' if result.name == VALID else result.name + '/'}"
    whole = [index for index, problem in enumerate(result.problems) if len(problem) == samples]
    values = {"reward": [_mean_reward(problem) for problem in result.problems]}
    if samples > 1 and whole:
        solved = [sum(one.reward >= solved_reward for one in result.problems[index]) for index in whole]
        for k in reported_k(samples):
            values[f"pass@{k}"] = [pass_at(k, samples=samples, solved=count) for count in solved]
        if result.answers is not None:
            values[f"maj@{samples}"] = [
                float(majority_reward(result.problems[index], result.answers[index]) >= solved_reward)
                for index in whole
            ]
    found: dict[str, float] = {}
    for name, of_problems in values.items():
        estimated = estimate(of_problems)
        found[f"{prefix}{name}"] = estimated.mean
        if estimated.half_width is not None:
            found[f"{prefix}{name}_ci95"] = estimated.half_width
    every = [one for problem in result.problems for one in problem]
    found[f"{prefix}completion_len"] = fmean(one.completion_len for one in every)
    found[f"{prefix}truncated"] = fmean(one.finish_reason == "length" for one in every)
    return found


def majority_reward(problem: Sequence[Trajectory], answers: Sequence[str | None]) -> float:
    """Reward of the most frequent final answer, of the earlier one among equals; −∞ if no sample has an answer."""
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return float("-inf")
    winner, _ = votes.most_common(1)[0]
    return problem[answers.index(winner)].reward


def _mean_reward(problem: Sequence[Trajectory]) -> float:
    return fmean(one.reward for one in problem)
