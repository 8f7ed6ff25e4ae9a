"""Episodes: what one is, how one runs, and how a list of them runs without a staleness gate (evaluation)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from areal_trainer.rollout.workflow import GenerationEngine, RolloutWorkflow
from areal_trainer.servers.fleet import NoServerError
from areal_trainer.trajectory import Trajectory

logger = logging.getLogger(__name__)

DEFAULT_CONCURRENCY = 256  # of an evaluation's episodes, when rollout.max_concurrent_rollouts is null
Accept = Callable[[list[Trajectory]], bool]


class RolloutError(Exception):
    """Rollout cannot continue: too many episodes failed in a row, or no further episode could ever finish."""


class Interrupted(Exception):
    """The run was asked to stop, so no further batch will come."""


@dataclass
class Prompt:
    """A row waiting for its episode."""

    data: dict[str, Any]
    workflow: RolloutWorkflow
    accept: Accept | None = None


@dataclass
class Episode:
    """A prompt whose episode is running, or finished and waiting for the trainer."""

    number: int  # in the order of starting
    version: int  # that the servers held at the start: no token is older
    prompt: Prompt
    started: float = 0.0  # time on the event loop's clock
    trajectories: list[Trajectory] = field(default_factory=list)


async def run_prompt(engine: GenerationEngine, prompt: Prompt, number: int) -> tuple[list[Trajectory], bool]:
    """The trajectories of one episode, in group ``number``, and whether it is accepted."""
    result = await prompt.workflow.arun_episode(engine, prompt.data)
    if not result:
        return [], False
    if not isinstance(result, list) or not all(isinstance(item, Trajectory) for item in result):
        raise TypeError(
            f"{type(prompt.workflow).__name__}.arun_episode returned {result!r:.200}; "
            "return a list of Trajectory, or None to reject the episode"
        )
    accepted = prompt.accept is None or prompt.accept(result)
    return [trajectory.in_group(number) for trajectory in result], accepted


async def run_prompts(
    engine: GenerationEngine, prompts: list[Prompt], *, max_concurrent: int | None, max_failed: int
) -> list[list[Trajectory]]:
    """One episode per prompt, without a gate, in the order of the prompts; empty if rejected or failed.

    Raises ``RolloutError`` with the last error after more than ``max_failed`` failures in a row, in the order in which
    the episodes end.
    """
    slots = asyncio.Semaphore(max_concurrent or DEFAULT_CONCURRENCY)
    failed = failed_in_a_row = 0

    async def run(number: int, prompt: Prompt) -> list[Trajectory]:
        nonlocal failed, failed_in_a_row
        async with slots:
            try:
                trajectories, accepted = await run_prompt(engine, prompt, number)
            except Exception as error:  # user code may raise anything
                logger.warning("episode failed on %.300r", prompt.data, exc_info=error)
                failed += 1
                failed_in_a_row += 1
                if isinstance(error, NoServerError):
                    raise
                if failed_in_a_row > max_failed:
                    raise RolloutError(
                        f"{failed_in_a_row} episodes in a row failed (rollout.max_failed_episodes is {max_failed}), "
                        f"the last with {type(error).__name__}: {error}"
                    ) from error
                return []
            failed_in_a_row = 0
            return trajectories if accepted else []

    tasks = [asyncio.create_task(run(number, prompt)) for number, prompt in enumerate(prompts)]
    try:
        results = await asyncio.gather(*tasks)
        if failed:
            logger.warning("%d of %d episodes failed and are left out", failed, len(prompts))
        return results
    finally:
        for task in tasks:
            task.cancel()
