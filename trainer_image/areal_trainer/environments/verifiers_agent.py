"""Plays tasks of the PyPI package verifiers (0.4), whose environments are tasksets with an agent.

It runs in an environment with that package (``rollout.agent.mode: subproc``). Called as a program it prints the rows of
a taskset, one for each task::

    .bin/verifiers/bin/python verifiers_agent.py NAME [COUNT] > tasks.jsonl
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import verifiers.v1 as vf
from openai import APIStatusError, AsyncOpenAI
from verifiers.v1.dialects.chat import message_to_wire
from verifiers.v1.harnesses.utils.mcp import call_mcp, connect_mcp
from verifiers.v1.utils.loaders import default_harness_id, load_environment, resolve_env_config

HARNESS = "areal_chat"
MAX_TASKS = 1_000_000
_KEYS = itertools.count()


class VerifiersError(Exception):
    """The environment failed, or cannot be used."""


class VerifiersAgent:
    """Each session is an episode on the task that the row's column ``task`` has the number of.

    ``env`` is the environment's configuration, as in verifiers' own files. By default its agent runs in this process,
    with the taskset's harness if it has one, else in a chat with the taskset's tools. ``folder`` has the taskset's
    module, if that is not installed.
    """

    def __init__(self, taskset: str, *, env: dict[str, Any] | None = None, folder: str | None = None) -> None:
        self._name = taskset
        if folder is not None:
            sys.path.insert(0, os.path.abspath(folder))
            os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # of the servers of tools
        self._env = load_environment(resolve_env_config(_config(taskset, env or {})))
        self._source: Iterator[Any] = iter(self._env.taskset)
        self._tasks: list[Any] = []

    async def run(self, data: dict[str, Any], **extra_kwargs: Any) -> float:
        """The reward of an episode, given to its last completion. Raises ``VerifiersError``."""
        task = self._task(data)
        env = copy.copy(self._env)  # an episode's servers and clients end with it; verifiers would keep the clients
        async with _key(extra_kwargs["api_key"]) as variable, env.serving():
            client = vf.EvalClientConfig(base_url=f"{extra_kwargs['base_url']}/v1", api_key_var=variable)
            episode = await env.run_episode(task, vf.ModelContext(model="default", client=client))
        errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
        if not episode.ok:
            problem = errors[-1] if errors else None
            raise VerifiersError(
                f"{self._name}: {problem.type}: {problem.message}" if problem else f"{self._name} failed"
            )
        if len(episode.traces) != 1:
            raise VerifiersError(f"{self._name} ran {len(episode.traces)} agents; only environments of one can be used")
        return float(episode.traces[0].reward)

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row of a data set for each task."""
        for number, task in enumerate(self._env.taskset):
            prompt = task.data.prompt_text or task.data.name or self._name
            yield {"messages": [{"role": "user", "content": prompt}], "answer": "", "task": number}

    def _task(self, data: dict[str, Any]) -> Any:
        number = data.get("task")
        if type(number) is not int or not 0 <= number < MAX_TASKS:
            raise VerifiersError(f"the row's column task is {number!r:.80}; use the number of a task of {self._name}")
        while len(self._tasks) <= number:
            try:
                self._tasks.append(next(self._source))
            except StopIteration:
                raise VerifiersError(
                    f"the row's column task is {number}, but {self._name} has {len(self._tasks)} tasks"
                ) from None
        return self._tasks[number]


class ChatHarness(vf.Harness[vf.HarnessConfig]):
    """A chat with the task's tools, in this process; verifiers' own starts a process for each episode."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_MCP = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        """Chat until an answer without calls, or until the conversation is full."""
        system, prompt = self.resolve_prompt(data)
        messages = [{"role": "system", "content": system}] if system else []
        if isinstance(prompt, str):
            messages.append({"role": "user", "content": prompt})
        else:
            messages += [message_to_wire(message) for message in prompt or []]
        servers = {name: {"url": url, "timeout": self.config.tool_timeout} for name, url in mcp_urls.items()}
        async with AsyncExitStack() as stack:
            tools, dispatch, connections = await connect_mcp({"mcpServers": servers}, stack)
            # The session's deadline is the timeout: connecting to this process may take long while others start.
            access: dict[str, Any] = {"base_url": endpoint, "api_key": secret}
            client = await stack.enter_async_context(AsyncOpenAI(**access, max_retries=0, timeout=None))
            while (answer := await _answer(client, ctx.model, messages, tools)) is not None:
                messages.append(answer.model_dump(exclude_none=True))
                if not answer.tool_calls:
                    break
                for call in answer.tool_calls:
                    content = await _call(call.function, dispatch, connections)
                    messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
        return vf.ProgramResult(exit_code=0, stdout="", stderr="")


async def _answer(client: AsyncOpenAI, model: str, messages: list[Any], tools: list[Any]) -> Any:
    """The model's message; None if the conversation is full."""
    options: dict[str, Any] = {"tools": tools} if tools else {}
    try:
        completion = await client.chat.completions.create(model=model, messages=messages, **options)
    except APIStatusError as error:
        if "gconfig.max_tokens" in str(error):
            return None
        raise
    return completion.choices[0].message


async def _call(function: Any, dispatch: dict[str, Any], connections: dict[str, Any]) -> Any:
    """A tool's result, or why there is none, for the model."""
    try:
        arguments = json.loads(function.arguments or "{}")
    except ValueError as error:
        return f"error: the arguments are no JSON: {error}"
    if function.name not in dispatch or not isinstance(arguments, dict):
        return f"error: there is no tool {function.name!r} with such arguments"
    return await call_mcp(connections, dispatch, function.name, arguments)


@contextlib.asynccontextmanager
async def _key(key: str) -> AsyncIterator[str]:
    """An environment variable with the session's key: verifiers takes keys in no other way."""
    variable = f"AREAL_SESSION_{next(_KEYS)}_API_KEY"  # names with API_KEY do not reach processes of the environment
    os.environ[variable] = key
    try:
        yield variable
    finally:
        del os.environ[variable]


def _config(taskset: str, env: dict[str, Any]) -> dict[str, Any]:
    sys.modules.setdefault(HARNESS, sys.modules[__name__])  # verifiers finds a harness by the name of its module
    agent: dict[str, Any] = {"runtime": {"type": "subprocess"}}
    if default_harness_id(taskset) != taskset:
        agent["harness"] = {"id": HARNESS}
    return {**env, "taskset": {"id": taskset, **env.get("taskset", {})}, "agent": {**agent, **env.get("agent", {})}}


def main(arguments: list[str]) -> None:
    """Print rows."""
    count = int(arguments[1]) if len(arguments) > 1 else MAX_TASKS
    for row in itertools.islice(VerifiersAgent(arguments[0]).rows(), count):
        print(json.dumps(row))


__all__ = ["ChatHarness"]  # what verifiers looks for in a harness's module

if __name__ == "__main__":
    main(sys.argv[1:])
