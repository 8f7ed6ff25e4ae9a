"""Runs agents as workflows: each sample is a session of the gateway, in which the agent calls the model by HTTP.

An agent is any class with ``async def run(self, data, **extra_kwargs)``, AReaL's convention. ``extra_kwargs`` has
``base_url``, ``api_key`` and ``http_client``, an ``httpx.AsyncClient``. It returns the reward of the last completion,
or rewards by completion ID, or None if it set rewards by HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import logging
from collections.abc import Mapping
from typing import Any, Protocol

import httpx
import msgspec

from areal_trainer.rollout.agent_pool import PooledAgent
from areal_trainer.rollout.gateway_process import GatewayError, GatewayProcess
from areal_trainer.rollout.loop import LoopThread
from areal_trainer.rollout.workflow import GenerationEngine, RolloutWorkflow, task_id_of
from areal_trainer.routing import EncodedExperts
from areal_trainer.trajectory import Trajectory

logger = logging.getLogger(__name__)
_BLOCKED_S = 30.0  # beyond the session's timeout, before an agent is taken to block its event loop


class Agent(Protocol):
    """An agent; one instance serves all sessions, which run concurrently on one event loop."""

    async def run(self, data: dict[str, Any], **extra_kwargs: Any) -> float | Mapping[str, float] | None:
        """Work on the row ``data``."""
        ...


class ExportedSample(msgspec.Struct):
    """A sample in the gateway's answer to /export_trajectories."""

    interaction_id: str
    input_ids: list[int]
    loss_mask: list[bool]
    logprobs: list[float]
    versions: list[int]
    reward: float
    prompt_len: int
    finish_reason: str
    prompt: str
    completion: str
    experts: EncodedExperts | None = None


class ExportedSession(msgspec.Struct):
    """The gateway's answer to /export_trajectories."""

    reward: float | None  # sum of the rewards that were set
    trajectories: list[ExportedSample]


class ExportedGroup(msgspec.Struct):
    """The gateway's answer to /rl/next_group."""

    task_id: str
    sessions: list[ExportedSession]


_GROUP = msgspec.json.Decoder(ExportedGroup)
_EXPORTED = msgspec.json.Decoder(ExportedSession)


class AgentError(Exception):
    """An agent ended without a completion or a reward."""


def is_agent(loaded: Any) -> bool:
    """Whether the object at ``workflow.path`` is an agent class."""
    return inspect.isclass(loaded) and inspect.iscoroutinefunction(getattr(loaded, "run", None))


class AgentRunner:
    """Runs agents on a separate event loop, because an agent may block it."""

    def __init__(self, gateway: GatewayProcess, *, timeout_s: float) -> None:
        self._gateway = gateway
        self._timeout_s = timeout_s
        self._loop: LoopThread | None = None
        self._client: httpx.AsyncClient | None = None
        self._pooled: list[PooledAgent] = []

    def start(self, agent: PooledAgent) -> None:
        """Start the agent's first process. Raises ``ValueError`` if its class cannot be used."""
        self._ensure_loop().run(agent.start())
        self._pooled.append(agent)

    async def run(self, agent: Agent, data: dict[str, Any], *, evaluation: bool) -> list[Trajectory]:
        """The samples of one session. Raises what the agent raises, and ``AgentError``."""
        loop = self._ensure_loop()
        url = await self._gateway.url()  # starting the gateway is not the agent's time
        work = asyncio.wrap_future(loop.start(self._session(agent, data, url=url, evaluation=evaluation)))
        try:
            async with asyncio.timeout(self._timeout_s + _BLOCKED_S) as deadline:
                return await work
        except TimeoutError:
            if not deadline.expired():
                raise
            raise AgentError(
                f"a session did not end within rollout.agent.session_timeout_seconds = {self._timeout_s:g} and could "
                "not be cancelled: a blocking call in an agent stops the event loop that all agents share"
            ) from None

    def close(self) -> None:
        """End the event loop; running agents are cancelled."""
        if self._loop is not None:
            assert self._client is not None
            self._loop.run(self._shut_down(self._client))
            self._loop.close()
            self._loop = None

    def _ensure_loop(self) -> LoopThread:
        if self._loop is None:
            self._loop = LoopThread("agents")
            self._client = self._loop.call(self._make_client)
        return self._loop

    def _make_client(self) -> httpx.AsyncClient:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs a line per request
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        return httpx.AsyncClient(timeout=self._timeout_s, limits=limits, trust_env=False)

    async def _shut_down(self, client: httpx.AsyncClient) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for agent in self._pooled:
            agent.close()
        await client.aclose()

    async def _session(self, agent: Agent, data: dict[str, Any], *, url: str, evaluation: bool) -> list[Trajectory]:
        task_id = task_id_of(data)
        started = msgspec.json.decode(
            await self._post(f"{url}/rl/start_session", {"task_id": task_id[:200], "evaluation": evaluation})
        )
        export = {"session_id": started["session_id"]}
        try:
            returned = await self._run_agent(agent, copy.deepcopy(data), base_url=url, api_key=started["api_key"])
            rewards = _rewards(returned, agent)
        except BaseException:
            with contextlib.suppress(GatewayError, httpx.HTTPError):  # the gateway has forgotten it, or has ended
                await self._post(f"{url}/export_trajectories", export)
            raise
        exported = _EXPORTED.decode(await self._post(f"{url}/export_trajectories", {**export, "rewards": rewards}))
        if not exported.trajectories:
            raise AgentError(f"{_name(agent)}.run made no model call that succeeded")
        if exported.reward is None:
            raise AgentError(f"{_name(agent)}.run returned None and set no reward; return a reward")
        if evaluation:  # each session counts once, with all its rewards
            exported.trajectories = exported.trajectories[-1:]
            exported.trajectories[0].reward = exported.reward
        return [_trajectory(sample, task_id=task_id) for sample in exported.trajectories]

    async def _run_agent(self, agent: Agent, data: dict[str, Any], **access: str) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s) as deadline:
                return await agent.run(data, http_client=self._client, **access)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise AgentError(
                f"{_name(agent)}.run did not end within rollout.agent.session_timeout_seconds = {self._timeout_s:g}"
            ) from None

    async def _post(self, url: str, body: dict[str, Any]) -> bytes:
        assert self._client is not None
        headers = {"Authorization": f"Bearer {self._gateway.admin_key}"}
        response = await self._client.post(url, json=body, headers=headers)
        if response.status_code != 200:
            raise GatewayError(f"{url}: status {response.status_code}: {response.text[:500]}")
        return response.content


class OnlineWorkflow(RolloutWorkflow):
    """Waits for ``n_samples`` sessions of one task that programs outside opened and ended; their samples are a group.

    A program that asks the gateway for a task gets the row.
    """

    def __init__(self, gateway: GatewayProcess, *, n_samples: int) -> None:
        self._gateway = gateway
        self._n_samples = n_samples

    async def arun_episode(self, engine: GenerationEngine, data: dict[str, Any]) -> list[Trajectory] | None:
        """The next group, all of whose tokens are as new as the weights are now."""
        body = {
            "size": self._n_samples,
            "oldest_version": engine.get_version(),
            "task_id": task_id_of(data),
            "data": data,
        }
        headers = {"Authorization": f"Bearer {self._gateway.admin_key}"}
        url = f"{await self._gateway.url()}/rl/next_group"
        async with httpx.AsyncClient(timeout=None, trust_env=False) as client:
            response = await client.post(url, content=msgspec.json.encode(body), headers=headers)
        if response.status_code != 200:
            raise GatewayError(f"{url}: status {response.status_code}: {response.text[:500]}")
        group = _GROUP.decode(response.content)
        return [
            _trajectory(sample, task_id=group.task_id) for session in group.sessions for sample in session.trajectories
        ]


class AgentWorkflow(RolloutWorkflow):
    """Runs ``n_samples`` sessions of an agent on each row; their samples are one group."""

    def __init__(self, agent: Agent, runner: AgentRunner, *, n_samples: int, evaluation: bool) -> None:
        self._agent = agent
        self._runner = runner
        self._n_samples = n_samples
        self._evaluation = evaluation

    async def arun_episode(self, engine: GenerationEngine, data: dict[str, Any]) -> list[Trajectory] | None:
        """The samples of all sessions that succeeded; raises the first error if none did."""
        sessions = [self._runner.run(self._agent, data, evaluation=self._evaluation) for _ in range(self._n_samples)]
        results = await asyncio.gather(*sessions, return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        if len(errors) == len(results):
            raise errors[0]
        for error in errors:
            logger.warning("a session failed on %.300r and is left out of its group", data, exc_info=error)
        return [trajectory for result in results if isinstance(result, list) for trajectory in result]


def make_agent(loaded: Any, *, path: str, kwargs: Mapping[str, Any]) -> Agent:
    """An instance of the agent class at ``path``; raises ``ValueError`` if it does not take ``kwargs``."""
    try:
        inspect.signature(loaded).bind(**kwargs)
    except TypeError as error:
        raise ValueError(
            f"workflow.path is {path!r}, whose constructor does not take {sorted(kwargs)}: {error}; "
            "change workflow.kwargs or the constructor"
        ) from error
    agent: Agent = loaded(**kwargs)
    return agent


def _trajectory(sample: ExportedSample, *, task_id: str) -> Trajectory:
    values = msgspec.structs.asdict(sample)
    del values["interaction_id"]
    values["experts"] = None if sample.experts is None else sample.experts.decoded()
    return Trajectory.of_lists(**values, task_id=task_id)


def _name(agent: Agent) -> str:
    return agent.path if isinstance(agent, PooledAgent) else type(agent).__name__


def _rewards(returned: Any, agent: Agent) -> float | dict[str, float] | None:
    if returned is None:
        return None
    if isinstance(returned, Mapping):
        return {str(key): float(value) for key, value in returned.items()}
    try:
        return float(returned)
    except (TypeError, ValueError):
        raise AgentError(
            f"{_name(agent)}.run returned {returned!r:.200}; return a number, or numbers by completion ID"
        ) from None
