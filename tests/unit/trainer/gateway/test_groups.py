"""Ended sessions are handed to the trainer in groups of one task, none older than it asks for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from areal_trainer.gateway.channel import Sample
from areal_trainer.gateway.conversation import ConversationTree
from areal_trainer.gateway.errors import GatewayError
from areal_trainer.gateway.groups import MAX_ATTEMPTS, MAX_WAITING, Groups
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


def groups_of(counters: Counters | None = None) -> Groups:
    return Groups(counters or Counters(), is_open=lambda one: one.state == "open")


async def take(groups: Groups, size: int, oldest_version: int = 0, row: dict[str, Any] | None = None) -> list[Session]:
    return await groups.take(f"row-{row}", size, oldest_version=oldest_version, row=row)


def ids(group: list[Session]) -> list[str]:
    return [one.id for one in group]


async def test_sessions_of_one_task_form_a_group_in_the_order_of_completion() -> None:
    groups = groups_of()
    waiting = [asyncio.create_task(take(groups, 2, row={"n": n})) for n in range(2)]
    await asyncio.sleep(0)
    for name in ("a1", "b1", "b2", "a2", "c1"):
        groups.add(session(name))
    assert [ids(group) for group in await asyncio.gather(*waiting)] == [["b1", "b2"], ["a1", "a2"]]


async def test_groups_that_were_complete_before_the_trainer_asked_are_kept() -> None:
    groups = groups_of()
    for name in ("a1", "a2", "a3"):
        groups.add(session(name))
    assert [ids(await take(groups, 1)) for _ in range(3)] == [["a1"], ["a2"], ["a3"]]


async def test_a_session_without_a_reward_is_left_out() -> None:
    groups = groups_of()
    groups.add(session("a1", reward=None))
    groups.add(session("a2", reward=0.0))
    assert ids(await take(groups, 1)) == ["a2"]


async def test_groups_older_than_the_trainer_asks_for_are_dropped_and_counted() -> None:
    groups = groups_of(counters := Counters())
    groups.add(session("a1", version=1))
    waiting = asyncio.create_task(take(groups, 1, 2))
    await asyncio.sleep(0)
    groups.add(session("b1", version=1))
    groups.add(session("c1", version=2))
    assert ids(await waiting) == ["c1"]
    assert counters.stale == 2


async def test_a_request_that_was_given_up_takes_no_group() -> None:
    groups = groups_of()
    waiting = asyncio.create_task(take(groups, 1))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    groups.add(session("a1"))
    assert ids(await take(groups, 1)) == ["a1"]


async def test_groups_that_nobody_takes_are_bounded() -> None:
    groups = groups_of(counters := Counters())
    for _ in range(MAX_WAITING + 3):
        groups.add(session("a1"))
    assert counters.stale == 3


class Agents:
    """Start sessions on rows, and end them."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._count = 0

    async def start(self) -> tuple[Session, dict[str, Any]]:
        self._count += 1

        def new(task_id: str) -> Session:
            one = session(f"s{self._count}", reward=None)
            one.task_id = task_id
            return one

        return await self._groups.start_on_row(new, wait_s=0.05)

    def end(self, one: Session, *, reward: float | None = 1.0, version: int = 0) -> None:
        if reward is not None:
            one.tree = session(one.id, version=version, reward=reward).tree
        one.state = "ended"
        self._groups.add(one)


async def test_agents_get_the_rows_that_the_trainer_waits_for_as_often_as_it_wants() -> None:
    groups = groups_of()
    waiting = [asyncio.create_task(take(groups, 2, row={"n": n})) for n in range(2)]
    await asyncio.sleep(0)
    agents = Agents(groups)
    started = [await agents.start() for _ in range(4)]
    assert [row for _, row in started] == [{"n": 0}, {"n": 0}, {"n": 1}, {"n": 1}]
    with pytest.raises(TimeoutError):
        await agents.start()
    for one, _ in reversed(started):
        agents.end(one)
    assert [sorted(ids(group)) for group in await asyncio.gather(*waiting)] == [["s1", "s2"], ["s3", "s4"]]


async def test_an_agent_that_asks_before_the_trainer_waits_for_a_row() -> None:
    groups = groups_of()
    asked = asyncio.create_task(groups.start_on_row(lambda task: session("a1"), wait_s=5.0))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(take(groups, 1, row={"n": 0}))
    assert (await asked)[1] == {"n": 0}
    waiting.cancel()


@pytest.mark.parametrize("reward", [None, 1.0])
async def test_a_session_without_a_reward_or_with_old_tokens_frees_its_row(reward: float | None) -> None:
    groups = groups_of()
    waiting = asyncio.create_task(take(groups, 1, 2, row={"n": 0}))
    await asyncio.sleep(0)
    agents = Agents(groups)
    agents.end((await agents.start())[0], reward=reward, version=1)
    agents.end((await agents.start())[0], version=2)
    assert ids(await waiting) == ["s2"]


async def test_a_row_on_which_every_session_fails_is_given_up() -> None:
    groups = groups_of()
    waiting = asyncio.create_task(take(groups, 2, row={"n": 0}))
    await asyncio.sleep(0)
    agents = Agents(groups)
    for _ in range(2 * MAX_ATTEMPTS):
        agents.end((await agents.start())[0], reward=None)
    with pytest.raises(TimeoutError):
        await agents.start()
    with pytest.raises(GatewayError, match="8 sessions were started on a row that needs 2"):
        await waiting


async def test_groups_of_the_agents_own_tasks_go_to_requests_whose_row_nobody_works_on() -> None:
    groups = groups_of()
    waiting = [asyncio.create_task(take(groups, 1, row={"n": n})) for n in range(2)]
    await asyncio.sleep(0)
    agents = Agents(groups)
    one, _ = await agents.start()
    groups.add(session("a1"))
    agents.end(one)
    assert [ids(group) for group in await asyncio.gather(*waiting)] == [["s1"], ["a1"]]
