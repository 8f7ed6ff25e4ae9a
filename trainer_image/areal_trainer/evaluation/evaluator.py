"""Evaluates the served weights on every held-out set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from areal_api.config import GRPOConfig
from areal_api.evaluation import HeldOut
from areal_trainer.evaluation.metrics import FinalAnswer, SetResult, statistics_of
from areal_trainer.evaluation.records import EvaluationRecords
from areal_trainer.rollout.workflow import RolloutWorkflow
from areal_trainer.trajectory import Trajectory

logger = logging.getLogger(__name__)

RunEpisodes = Callable[[list[dict[str, Any]], RolloutWorkflow], list[list[Trajectory]]]


@dataclass(frozen=True)
class PreparedSet:
    """A held-out set that is ready to be evaluated."""

    held_out: HeldOut
    rows: list[dict[str, Any]]
    workflow: RolloutWorkflow
    final_answer: FinalAnswer | None = None  # of a completion; for maj@k


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation. ``reward`` is the mean on the first set, ``valid_dataset``."""

    reward: float
    problems: int  # of that set
    statistics: dict[str, float]
    file: Path | None  # with the samples


class Evaluator:
    """Evaluates all sets of a configuration, on rank 0."""

    def __init__(self, config: GRPOConfig, sets: Sequence[PreparedSet], *, directory: Path) -> None:
        """``directory`` takes the samples, if ``evaluator.dump_to_file``."""
        evaluator = config.evaluator
        self._sets = sets
        self._solved_reward = evaluator.solved_reward
        self._records = EvaluationRecords(directory, max_bytes=evaluator.dump_max_bytes)
        self._writes = evaluator.dump_to_file

    def evaluate(self, run_episodes: RunEpisodes, *, step: int) -> Evaluation:
        """Sample and score every problem of every set under the served weights, those after ``step`` steps.

        Raises ``ValueError`` for a set without a sample.
        """
        logger.info("evaluating after step %d", step)
        results = [_evaluated(one, run_episodes) for one in self._sets]
        statistics: dict[str, float] = {}
        for one, result in zip(self._sets, results, strict=True):
            samples = one.held_out.gconfig.n_samples
            statistics |= statistics_of(result, samples=samples, solved_reward=self._solved_reward)
        file = self._records.write(step, results) if self._writes else None
        return Evaluation(results[0].reward, len(results[0].problems), statistics, file)


def _evaluated(one: PreparedSet, run_episodes: RunEpisodes) -> SetResult:
    episodes = [episode for episode in run_episodes(one.rows, one.workflow) if episode]
    if not episodes:
        raise ValueError(
            f"evaluation has no sample: every episode on {one.held_out.key} was rejected or failed; the log names the "
            "errors"
        )
    answers = None
    if one.final_answer is not None and one.held_out.gconfig.n_samples > 1:
        answers = [[_answer(one.final_answer, sample.completion) for sample in episode] for episode in episodes]
    return SetResult(one.held_out.name, episodes, answers)


def _answer(final_answer: FinalAnswer, completion: str) -> str | None:
    try:
        answer = final_answer(completion)
    except Exception as error:  # noqa: BLE001  a completion that it cannot read has no vote
        logger.warning("final_answer failed on a completion: %s: %s", type(error).__name__, error)
        return None
    return answer if isinstance(answer, str) else None
