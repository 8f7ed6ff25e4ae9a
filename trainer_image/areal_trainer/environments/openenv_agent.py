"""Plays an OpenEnv environment at a URL: the model's messages are actions, observations are the user's messages.

OpenEnv's protocol (openenv-core 0.3) is JSON over the WebSocket at /ws, one connection per episode: ``reset`` and
``step`` are answered by ``observation``, which has ``observation``, ``reward`` and ``done``, or by ``error``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import aiohttp

LONGEST_ERROR = 500


class OpenEnvError(Exception):
    """The environment cannot be reached, raised an error, or sent something unusable."""


class OpenEnvAgent:
    """Each session is an episode. A completion's reward is that of its step.

    ``action_field`` is the field of an action that takes the model's message; if it is None, the message has to be a
    JSON object, the whole action. ``observation_field`` is the field of an observation that is shown to the model; if
    it is None, all of it is shown as JSON. ``reset_fields`` are the row's columns that are arguments of the reset, such
    as ``seed``. An episode ends with the environment's ``done``, after ``max_turns`` steps, or if the conversation
    reaches ``gconfig.max_tokens``.
    """

    def __init__(
        self,
        url: str,
        *,
        action_field: str | None = "message",
        observation_field: str | None = None,
        reset_fields: Sequence[str] = (),
        system_prompt: str | None = None,
        max_turns: int = 16,
        max_observation_chars: int = 65536,
        step_timeout_s: float = 60.0,
    ) -> None:
        self._url = url.rstrip("/") + "/ws"
        self._action_field = action_field
        self._observation_field = observation_field
        self._reset_fields = tuple(reset_fields)
        self._system_prompt = system_prompt
        self._max_turns = max_turns
        self._max_observation_chars = max_observation_chars
        self._step_timeout_s = step_timeout_s

    async def run(self, data: dict[str, Any], **extra_kwargs: Any) -> dict[str, float]:
        """The rewards of an episode by completion ID. Raises ``OpenEnvError``."""
        if missing := [name for name in self._reset_fields if name not in data]:
            raise OpenEnvError(f"workflow.kwargs.reset_fields names {missing[0]!r}; the row has: {', '.join(data)}")
        limit = 4 * self._max_observation_chars + (1 << 16)
        timeout = aiohttp.ClientTimeout(total=None, connect=self._step_timeout_s)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as client,
                client.ws_connect(self._url, max_msg_size=limit) as socket,
            ):
                rewards = await self._play(socket, data, extra_kwargs)
                await socket.send_json({"type": "close"})
                return rewards
        except aiohttp.ClientError as error:
            raise OpenEnvError(f"{self._url} cannot be reached: {error}") from error

    async def _play(
        self, socket: aiohttp.ClientWebSocketResponse, data: dict[str, Any], access: dict[str, Any]
    ) -> dict[str, float]:
        messages = [{"role": "system", "content": self._system_prompt}] if self._system_prompt else []
        answer = await self._ask(socket, "reset", {name: data[name] for name in self._reset_fields})
        rewards: dict[str, float] = {}
        for _ in range(self._max_turns):
            if answer.get("done"):
                break
            messages.append({"role": "user", "content": self._shown(answer)})
            completion = await self._complete(messages, **access)
            if completion is None:  # no room for another completion
                break
            message = completion["choices"][0]["message"]
            messages.append(message)
            action = self._action(message["content"] or "")
            if action is None:
                rewards[completion["id"]] = 0.0
                break
            answer = await self._ask(socket, "step", action)
            rewards[completion["id"]] = self._reward(answer)
        return rewards

    async def _ask(self, socket: aiohttp.ClientWebSocketResponse, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        """The environment's answer to ``reset`` or ``step``."""
        await socket.send_json({"type": kind, "data": data})
        try:
            received = await socket.receive(timeout=self._step_timeout_s)
        except TimeoutError:
            raise OpenEnvError(
                f"{self._url} did not answer {kind} within workflow.kwargs.step_timeout_s = {self._step_timeout_s:g}"
            ) from None
        if received.type is aiohttp.WSMsgType.CLOSE and received.data == aiohttp.WSCloseCode.MESSAGE_TOO_BIG:
            raise OpenEnvError(self._too_long(kind))
        if received.type is aiohttp.WSMsgType.ERROR and isinstance(received.data, aiohttp.WebSocketError):
            raise OpenEnvError(self._too_long(kind) if received.data.code == 1009 else f"{self._url}: {received.data}")
        if received.type is not aiohttp.WSMsgType.TEXT:
            raise OpenEnvError(f"{self._url} closed the connection instead of answering {kind}")
        try:
            answer = json.loads(received.data)
            content = answer.get("data") or {}
            problem = str(content.get("message", content))[:LONGEST_ERROR] if answer["type"] == "error" else None
            observation = content.get("observation", {})
        except (ValueError, KeyError, AttributeError, RecursionError):
            raise OpenEnvError(f"{self._url} sent {received.data[:200]!r}, no message of OpenEnv") from None
        if problem is not None:
            raise OpenEnvError(f"{self._url} failed to {kind}: {problem}")
        return {"observation": observation, "reward": content.get("reward"), "done": content.get("done", False)}

    async def _complete(
        self, messages: list[dict[str, Any]], *, base_url: str, api_key: str, http_client: Any
    ) -> dict[str, Any] | None:
        """The model's completion; None if the messages leave no room for one."""
        response = await http_client.post(
            f"{base_url}/v1/chat/completions",
            headers={"Authorization": f"Bearer {api_key}"},
            json={"model": "default", "messages": messages},
        )
        body = response.json()
        if response.status_code == 400 and body["error"].get("code") == "context_length_exceeded":
            return None
        response.raise_for_status()
        completion: dict[str, Any] = body
        return completion

    def _shown(self, answer: dict[str, Any]) -> str:
        observation = answer["observation"]
        if self._observation_field is not None:
            if not isinstance(observation, dict) or self._observation_field not in observation:
                fields = ", ".join(observation) if isinstance(observation, dict) else type(observation).__name__
                raise OpenEnvError(
                    f"workflow.kwargs.observation_field is {self._observation_field!r}; observations of {self._url} "
                    f"have: {fields[:LONGEST_ERROR]}"
                )
            observation = observation[self._observation_field]
        text = observation if isinstance(observation, str) else json.dumps(observation)
        if len(text) > self._max_observation_chars:
            raise OpenEnvError(self._too_long("an action"))
        return text

    def _action(self, text: str) -> dict[str, Any] | None:
        """The action in the model's message; None if it is no JSON object."""
        if self._action_field is not None:
            return {self._action_field: text}
        try:
            action = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return action if isinstance(action, dict) else None

    def _reward(self, answer: dict[str, Any]) -> float:
        reward = answer["reward"]
        if reward is not None and not (isinstance(reward, int | float) and math.isfinite(reward)):
            raise OpenEnvError(f"{self._url} gave the reward {reward!r:.200}, which is no finite number")
        return float(reward or 0.0)

    def _too_long(self, kind: str) -> str:
        return (
            f"{self._url} answered {kind} with an observation of more than workflow.kwargs.max_observation_chars = "
            f"{self._max_observation_chars} characters"
        )
