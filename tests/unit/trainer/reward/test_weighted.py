"""A reward of several terms."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from areal_api.data_config import RewardConfig
from areal_trainer.reward.function import RewardError
from areal_trainer.reward.weighted import Reward, WeightedReward
from support.judge_server import judging


def is_short(prompt: str, completions: str, prompt_ids: list[int], completion_ids: list[int], **kwargs: Any) -> float:
    return float(len(completions) < 10)


def fails(prompt: str, completions: str, prompt_ids: list[int], completion_ids: list[int], **kwargs: Any) -> float:
    raise KeyError("no such thing")


def of(*terms: dict[str, Any], **settings: Any) -> Reward:
    return Reward.of(RewardConfig(processes=0, terms=list(terms), **settings))


SHORT = {"name": "short", "path": "tests.unit.trainer.reward.test_weighted:is_short", "weight": 0.5}
FAILS = {"name": "fails", "path": "tests.unit.trainer.reward.test_weighted:fails"}


async def test_the_reward_is_the_weighted_sum_and_knows_its_terms() -> None:
    reward = of(SHORT)
    both = await reward.score("2+2=", r"\boxed{4}", [1], [2], answer="4")
    assert isinstance(both, WeightedReward)
    assert (both, both.terms) == (1.5, {"task": 1.0, "short": 1.0})
    assert await reward.score("2+2=", r"the answer is \boxed{4}", [1], [2], answer="4") == 1.0
    assert await reward.score("2+2=", "5", [1], [2], answer="4") == 0.5
    assert reward.statistics() == {}


async def test_a_reward_of_one_function_is_that_function() -> None:
    assert type(await of().score("2+2=", r"\boxed{4}", [1], [2], answer="4")) is float
    assert await of(weight=2.0).score("2+2=", r"\boxed{4}", [1], [2], answer="4") == 2.0


async def test_a_term_that_fails_fails_the_sample() -> None:
    reward = of(SHORT, FAILS)
    with pytest.raises(RewardError, match="KeyError"):
        await reward.score("2+2=", "4", [1], [2], answer="4")


async def test_a_judge_is_a_term(tmp_path: Path) -> None:
    async with judging(lambda body: "Score: 5") as server:
        judge = {"name": "style", "weight": 2.0, "judge": {"url": server.url, "model": "m", "output_price": 1.0}}
        reward = Reward.of(RewardConfig(processes=0, weight=0.0, terms=[judge]), run=tmp_path)
        scored = await reward.score("2+2=", r"\boxed{4}", [1], [2], answer="4")
        assert isinstance(scored, WeightedReward)
        assert (scored, scored.terms) == (1.0, {"task": 1.0, "style": 0.5})
        found = reward.statistics()
        assert (found["judge/style/requests"], found["judge/style/cost"]) == (1.0, pytest.approx(1e-4))
        await asyncio.to_thread(reward.close)
    assert (tmp_path / "judge-style.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terms": [SHORT, SHORT]}, "name 'short' occurs twice"),
        ({"terms": [SHORT | {"name": "task"}]}, "is the name of path"),
        ({"terms": [{"name": "a"}]}, "neither path nor judge"),
        ({"terms": [SHORT | {"judge": {"url": "http://x", "model": "m"}}]}, "both path and judge"),
        ({"weight": 0.0, "terms": [SHORT | {"weight": 0.0}]}, "every reward would be 0"),
        ({"terms": [{"name": "a", "judge": {"url": "ftp://x", "model": "m"}}]}, "url"),
        ({"terms": [{"name": "a", "judge": {"url": "http://x", "model": "m", "pattern": "("}}]}, "not a regular"),
        ({"terms": [{"name": "a", "judge": {"url": "http://x", "model": "m", "pattern": "x"}}]}, "without a group"),
        ({"terms": [{"name": "a", "judge": {"url": "http://x", "model": "m", "max_cost": 1}}]}, "no price"),
        ({"terms": [{"name": "a", "judge": {"url": "http://x", "model": "m", "prompt": "x"}}]}, "lacks .completion"),
        ({"terms": [{"name": "a", "judge": {"url": "http://x", "model": "m", "lowest": 10}}]}, "not below highest"),
    ],
)  # fmt: skip
def test_terms_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RewardConfig(**changes)
