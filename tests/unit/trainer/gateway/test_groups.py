"""Ended sessions are handed to the trainer in groups of one task, none older than it asks for."""

from __future__ import annotations

import asyncio

from areal_trainer.gateway.channel import Sample
from areal_trainer.gateway.conversation import ConversationTree
from areal_trainer.gateway.groups import MAX_WAITING, Groups
from areal_trainer.gateway.sessions import Counters, Session
from support.chat_tokenizer import ChatTokenizer
from support.gateway_app import render


def session(name: str, *, version: int = 0, reward: float | None = 1.0) -> Session:
    """A session of task ``name[0]`` with one completion."""
    tree = ConversationTree(render, ChatTokenizer().encode)
    message = {"role": "assistant", "content": "a"}
    tree.add(
        tree.prompt([{"role": "user", "content": "q"}], []),
        name,
        [(Sample([5], [0.0], [version], "stop"), "a", message)],
    )
    if reward is not None:
        tree.set_reward(None, reward)
    return Session(name, f"key-{name}", name[0], False, 1e9, tree)


def ids(group: list[Session]) -> list[str]:
    return [one.id for one in group]


async def test_sessions_of_one_task_form_a_group_in_the_order_of_completion() -> None:
    groups = Groups(Counters())
    waiting = [asyncio.create_task(groups.take(2, oldest_version=0)) for _ in range(2)]
    await asyncio.sleep(0)
    for name in ("a1", "b1", "b2", "a2", "c1"):
        groups.add(session(name))
    assert [ids(group) for group in await asyncio.gather(*waiting)] == [["b1", "b2"], ["a1", "a2"]]


async def test_groups_that_were_complete_before_the_trainer_asked_are_kept() -> None:
    groups = Groups(Counters())
    for name in ("a1", "a2", "a3"):
        groups.add(session(name))
    assert [ids(await groups.take(1, oldest_version=0)) for _ in range(3)] == [["a1"], ["a2"], ["a3"]]


async def test_a_session_without_a_reward_is_left_out() -> None:
    groups = Groups(Counters())
    groups.add(session("a1", reward=None))
    groups.add(session("a2", reward=0.0))
    assert ids(await groups.take(1, oldest_version=0)) == ["a2"]


async def test_groups_older_than_the_trainer_asks_for_are_dropped_and_counted() -> None:
    groups = Groups(counters := Counters())
    groups.add(session("a1", version=1))
    waiting = asyncio.create_task(groups.take(1, oldest_version=2))
    await asyncio.sleep(0)
    groups.add(session("b1", version=1))
    groups.add(session("c1", version=2))
    assert ids(await waiting) == ["c1"]
    assert counters.stale == 2


async def test_a_request_that_was_given_up_takes_no_group() -> None:
    groups = Groups(Counters())
    waiting = asyncio.create_task(groups.take(1, oldest_version=0))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    groups.add(session("a1"))
    assert ids(await groups.take(1, oldest_version=0)) == ["a1"]


async def test_groups_that_nobody_takes_are_bounded() -> None:
    groups = Groups(counters := Counters())
    for _ in range(MAX_WAITING + 3):
        groups.add(session("a1"))
    assert counters.stale == 3
