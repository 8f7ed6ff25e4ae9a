"""The routes that show samples: of training steps, of a problem over the steps, and of evaluations."""

from __future__ import annotations

import asyncio
import math
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from areal_launcher.run_files import MAX_STEP
from areal_launcher.ui import evaluations, rollouts
from areal_launcher.ui.page import Directory, Page

MAX_PROBLEM = 10_000  # characters of the name of a problem

Step = Annotated[int, Path(ge=0, le=MAX_STEP)]
Count = Annotated[int, Query(ge=0, le=MAX_STEP)]
Problem = Annotated[str, Query(max_length=MAX_PROBLEM)]


def sample_routes(page: Page) -> APIRouter:
    """The routes below ``/api/runs/{identifier}`` that read files of samples."""
    router = APIRouter(prefix="/api/runs/{identifier}")

    @router.get("/rollouts")
    async def dumped_steps(run: Directory) -> list[int]:
        return await asyncio.to_thread(rollouts.steps, run)

    @router.get("/rollouts/{step}")
    async def dumped(
        run: Directory,
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
        return await page.samples(f"step {step}", lambda: rollouts.page(run, step, chosen, offset=offset))

    @router.get("/rollouts/{step}/{row}")
    async def tokens(run: Directory, step: Step, row: Step) -> dict[str, Any]:
        return await page.samples(f"step {step}", lambda: rollouts.tokens(run, step, row))

    @router.get("/problem")
    async def history(run: Directory, problem: Problem) -> dict[str, Any]:
        return await page.samples("the problem", lambda: rollouts.history(run, problem))

    @router.get("/evaluations")
    async def evaluated_steps(run: Directory) -> list[int]:
        return await asyncio.to_thread(evaluations.steps, run)

    @router.get("/evaluations/{first}/{second}")
    async def comparison(run: Directory, first: Step, second: Step) -> dict[str, Any]:
        what = f"the evaluation after step {first} or {second}"
        return await page.samples(what, lambda: evaluations.comparison(run, first, second))

    @router.get("/evaluations/{step}")
    async def answers(
        run: Directory, step: Step, of: Annotated[str, Query(max_length=MAX_PROBLEM)], problem: Problem
    ) -> dict[str, Any]:
        what = f"the evaluation after step {step}"
        return await page.samples(what, lambda: evaluations.answers(run, step, of=of, problem=problem))

    return router
