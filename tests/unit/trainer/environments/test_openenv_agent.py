"""The agent for OpenEnv against a real HTTP server that speaks its protocol and plays the model."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from aiohttp import web

from areal_trainer.environments.openenv_agent import OpenEnvAgent, OpenEnvError


class World:
    """An environment that counts down, and a model that answers with the number of its call."""

    def __init__(self, **replies: Any) -> None:
        self.replies = replies  # what to send instead of the proper answer to reset or step; None: nothing
        self.received: list[Any] = []
        self.prompts: list[Any] = []
        self.connections = 0

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.connections += 1
        left = 3
        async for message in socket:
            received = message.json()
            self.received.append(received)
            kind = received["type"]
            if kind == "close":
                break
            left -= kind == "step"
            data = {"observation": {"text": f"{left} left"}, "reward": 0.5 * (kind == "step"), "done": left == 0}
            reply = self.replies.get(kind, {"type": "observation", "data": data})
            if reply == "hang up":
                break
            if reply is not None:
                await (socket.send_str(reply) if isinstance(reply, str) else socket.send_json(reply))
        self.connections -= 1
        return socket

    async def model(self, request: web.Request) -> web.Response:
        self.prompts.append((await request.json())["messages"])
        number = len(self.prompts)
        if self.replies.get("room") == number - 1:
            return web.json_response({"error": {"code": "context_length_exceeded"}}, status=400)
        content = self.replies.get("content", str(number))
        return web.json_response(
            {"id": f"completion-{number}", "choices": [{"message": {"role": "assistant", "content": content}}]}
        )

    def play(self, row: dict[str, Any] | None = None, **kwargs: Any) -> dict[str, float]:
        """The rewards of an episode."""

        async def run() -> dict[str, float]:
            app = web.Application()
            app.add_routes([web.get("/world/ws", self.socket), web.post("/v1/chat/completions", self.model)])
            runner = web.AppRunner(app)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            try:
                async with httpx.AsyncClient(trust_env=False) as client:
                    agent = OpenEnvAgent(kwargs.pop("url", f"{url}/world"), **kwargs)
                    return await agent.run(row or {}, base_url=url, api_key="key", http_client=client)
            finally:
                await runner.cleanup()

        return asyncio.run(run())


def test_an_episode_lasts_until_the_environment_is_done_and_rewards_each_step() -> None:
    world = World()
    rewards = world.play({"seed": 7, "answer": "x"}, observation_field="text", reset_fields=["seed"])
    assert rewards == {"completion-1": 0.5, "completion-2": 0.5, "completion-3": 0.5}
    actions = [{"type": "step", "data": {"message": str(number)}} for number in (1, 2, 3)]
    assert world.received == [{"type": "reset", "data": {"seed": 7}}, *actions, {"type": "close"}]
    assert world.prompts[1] == [
        {"role": "user", "content": "3 left"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "2 left"},
    ]
    assert world.connections == 0


def test_actions_and_observations_may_be_json() -> None:
    world = World(content='{"move": "up"}')
    world.play(action_field=None, system_prompt="Play.", max_turns=1)
    assert world.received[1] == {"type": "step", "data": {"move": "up"}}
    assert world.prompts[0] == [
        {"role": "system", "content": "Play."},
        {"role": "user", "content": '{"text": "3 left"}'},
    ]
    assert World(content="up!").play(action_field=None) == {"completion-1": 0.0}


def test_an_episode_that_does_not_end_is_cut_at_the_turns_or_at_the_tokens() -> None:
    endless = {"type": "observation", "data": {"observation": {}, "reward": 1.0, "done": False}}
    assert len(World(step=endless).play(max_turns=5)) == 5
    assert len(World(step=endless, room=2).play(max_turns=5)) == 2


@pytest.mark.parametrize(
    ("replies", "words"),
    [
        (
            {"reset": {"type": "error", "data": {"message": "x" * 10**4, "code": "EXECUTION_ERROR"}}},
            "failed to reset: x",
        ),
        ({"step": {"type": "error", "data": {"message": "no such move"}}}, "failed to step: no such move"),
        ({"step": "hang up"}, "closed the connection instead of answering step"),
        ({"reset": None}, "did not answer reset within workflow.kwargs.step_timeout_s"),
        ({"reset": "[]"}, "no message of OpenEnv"),
        ({"reset": "[" * 50_000}, "no message of OpenEnv"),
        ({"reset": "{" + " " * 10**6 + "}"}, "more than workflow.kwargs.max_observation_chars = 1000"),
        (
            {"reset": {"type": "observation", "data": {"observation": {"text": "x" * 2000}}}},
            "max_observation_chars = 1000",
        ),
        ({"reset": {"type": "observation", "data": {"observation": {"board": ""}}}}, "observations of .* have: board"),
        ({"step": {"type": "observation", "data": {"observation": {"text": ""}, "reward": "1"}}}, "no finite number"),
    ],
)
def test_an_environment_that_misbehaves_fails_the_session(replies: dict[str, Any], words: str) -> None:
    world = World(**replies)
    with pytest.raises(OpenEnvError, match=words) as caught:
        world.play(
            observation_field="text",
            max_observation_chars=1000,
            step_timeout_s=0.5 if None in replies.values() else 60.0,
        )
    assert len(str(caught.value)) < 2000


def test_an_environment_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(OpenEnvError, match=r"http://127\.0\.0\.1:9/ws cannot be reached"):
        World().play(url="http://127.0.0.1:9/")
    with pytest.raises(OpenEnvError, match="reset_fields names 'seed'; the row has: answer"):
        World().play({"answer": "x"}, reset_fields=["seed"])
