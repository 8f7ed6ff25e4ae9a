"""The routes that show samples: of training steps, of a problem over the steps, and of evaluations."""

from __future__ import annotations

import math
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from areal_launcher.run_files import MAX_STEP
from areal_launcher.ui import evaluations, rollouts
from areal_launcher.ui.page import Page, Sampled

MAX_PROBLEM = 10_000  # characters of the name of a problem

Step = Annotated[int, Path(ge=0, le=MAX_STEP)]
Count = Annotated[int, Query(ge=0, le=MAX_STEP)]
Problem = Annotated[str, Query(max_length=MAX_PROBLEM)]


def sample_routes(page: Page) -> APIRouter:
    """The routes below ``/api/runs/{identifier}`` that read files of samples."""
    router = APIRouter(prefix="/api/runs/{identifier}")

    @router.get("/rollouts")
    async def dumped_steps(sampled: Sampled) -> list[int]:
        return await page.samples("the run", lambda: sampled.run.steps("rollouts"))

    @router.get("/rollouts/{step}")
    async def dumped(
        sampled: Sampled,
        step: Step,
        text: Annotated[str, Query(max_length=500)] = "",
        low: float = -math.inf,
        high: float = math.inf,
        shortest: Count = 0,
        longest: Count = MAX_STEP,
        only: rollouts.Kind = "all",
        offset: Count = 0,
    ) -> dict[str, Any]:
        chosen = rollouts.Filter(text, low, high, shortest, longest, only)

        def read() -> dict[str, Any]:
            sampled.run.fetch("rollouts", step)
            return rollouts.page(sampled.directory, step, chosen, offset=offset)

        return await page.samples(f"step {step}", read)

    @router.get("/rollouts/{step}/{row}")
    async def tokens(sampled: Sampled, step: Step, row: Step) -> dict[str, Any]:
        def read() -> dict[str, Any]:
            sampled.run.fetch("rollouts", step)
            return rollouts.tokens(sampled.directory, step, row)

        return await page.samples(f"step {step}", read)

    @router.get("/problem")
    async def history(sampled: Sampled, problem: Problem) -> dict[str, Any]:
        return await page.samples("the problem", lambda: rollouts.history(sampled.directory, problem))

    @router.get("/evaluations")
    async def evaluated_steps(sampled: Sampled) -> list[int]:
        return await page.samples("the run", lambda: sampled.run.steps("evaluations"))

    @router.get("/evaluations/{first}/{second}")
    async def comparison(sampled: Sampled, first: Step, second: Step) -> dict[str, Any]:
        def read() -> dict[str, Any]:
            sampled.run.fetch("evaluations", first, second)
            return evaluations.comparison(sampled.directory, first, second)

        return await page.samples(f"the evaluation after step {first} or {second}", read)

    @router.get("/evaluations/{step}")
    async def answers(
        sampled: Sampled, step: Step, of: Annotated[str, Query(max_length=MAX_PROBLEM)], problem: Problem
    ) -> dict[str, Any]:
        def read() -> dict[str, Any]:
            sampled.run.fetch("evaluations", step)
            return evaluations.answers(sampled.directory, step, of=of, problem=problem)

        return await page.samples(f"the evaluation after step {step}", read)

    return router
