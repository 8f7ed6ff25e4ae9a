"""Runs an agent class in a worker process, in any Python environment; ``agent_pool.py`` starts it.

It uses only the standard library, and httpx or httpx2 if the environment has it. Messages on the socket are lines of
JSON. The trainer sends the class, then rows with the access to a session; the answers are what the agent returned or
raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import json
import os
import queue
import resource
import signal
import socket
import sys
import threading
import traceback
from typing import Any

LONGEST_LINE = 1 << 26
LONGEST_ERROR = 2000
LONGEST_TRACEBACK = 8000


def main(descriptor: int) -> None:
    """Serve the trainer until it closes the socket."""
    os.dup2(2, 1)  # whatever an agent prints belongs in the log
    channel = socket.socket(fileno=descriptor)
    with channel.makefile("rb", buffering=0) as file:
        setup = json.loads(file.readline())
    resource.setrlimit(resource.RLIMIT_DATA, (setup["memory_bytes"], setup["memory_bytes"]))
    try:
        agent = load(setup["path"])(**setup["kwargs"])
        is_async = inspect.iscoroutinefunction(agent.run)
    except BaseException as error:  # noqa: BLE001  # the trainer reports it
        channel.sendall(line(described(error)))
        return
    channel.sendall(line({"async": is_async}))
    try:
        if is_async:
            asyncio.run(serve_async(agent, channel))
        else:
            serve(agent, channel)
    finally:
        os.killpg(0, signal.SIGKILL)  # also what the agent started


def load(path: str) -> Any:
    """The class at ``package.module:Class`` or ``/path/to/file.py:Class``."""
    module_name, _, name = path.rpartition(":")
    if module_name.endswith(".py"):
        spec = importlib.util.spec_from_file_location("agent", module_name)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["agent"] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(module_name)
    loaded: Any = module
    for part in name.split("."):
        loaded = getattr(loaded, part)
    if not (inspect.isclass(loaded) and callable(getattr(loaded, "run", None))):
        raise TypeError(f"{path} is no class with a method run")
    return loaded


async def serve_async(agent: Any, channel: socket.socket) -> None:
    """Run sessions concurrently."""
    reader, writer = await asyncio.open_connection(sock=channel, limit=LONGEST_LINE)
    extra = {"http_client": client} if (client := http_client()) is not None else {}
    tasks: dict[int, asyncio.Task[None]] = {}

    async def session(request: dict[str, Any]) -> None:
        number = request["number"]
        try:
            answer = answered(await agent.run(request["data"], **request["access"], **extra))
        except BaseException as error:  # noqa: BLE001  # the trainer reports it
            answer = described(error)
        writer.write(line({"number": number, **answer}))
        del tasks[number]

    while request_line := await reader.readline():
        request = json.loads(request_line)
        if "cancel" in request:
            if (task := tasks.get(request["cancel"])) is not None:
                task.cancel()
        else:
            tasks[request["number"]] = asyncio.create_task(session(request))


def http_client() -> Any:
    """A client that all sessions share; None if the environment has neither httpx nor its successor."""
    for name in ("httpx", "httpx2"):
        with contextlib.suppress(ImportError):
            httpx = importlib.import_module(name)
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
            return httpx.AsyncClient(timeout=None, limits=limits, trust_env=False)
    return None


def serve(agent: Any, channel: socket.socket) -> None:
    """Run one session at a time, with its address and key in the environment of OpenAI's and Anthropic's SDKs."""
    requests: queue.Queue[bytes] = queue.Queue()

    def read() -> None:
        with channel.makefile("rb") as file:
            for request_line in file:
                requests.put(request_line)
        os.killpg(0, signal.SIGKILL)  # the trainer has ended

    threading.Thread(target=read, daemon=True).start()
    while True:
        request = json.loads(requests.get())
        access = request["access"]
        os.environ["OPENAI_BASE_URL"] = access["base_url"] + "/v1"
        os.environ["ANTHROPIC_BASE_URL"] = access["base_url"]
        os.environ["OPENAI_API_KEY"] = os.environ["ANTHROPIC_API_KEY"] = access["api_key"]
        try:
            answer = answered(agent.run(request["data"], **access))
        except BaseException as error:  # noqa: BLE001  # the trainer reports it
            answer = described(error)
        channel.sendall(line({"number": request["number"], **answer}))


def answered(returned: Any) -> dict[str, Any]:
    """What the agent returned: a number, numbers by completion ID, or None."""
    if isinstance(returned, dict):
        return {"returned": {str(key): float(value) for key, value in returned.items()}}
    return {"returned": None if returned is None else float(returned)}


def described(error: BaseException) -> dict[str, Any]:
    """An exception, for the trainer's log."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return {"error": f"{type(error).__name__}: {error}"[:LONGEST_ERROR], "traceback": text[-LONGEST_TRACEBACK:]}


def line(message: dict[str, Any]) -> bytes:
    """A message as a line of JSON."""
    return json.dumps(message).encode() + b"\n"


if __name__ == "__main__":
    main(int(sys.argv[1]))
