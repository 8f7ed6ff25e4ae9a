"""A reward process: ``python -m areal_trainer.reward.worker <file descriptor>``.

It reads pickled batches of calls from the descriptor, a socket to the trainer, and returns each result as soon as it is
available. It exits when the socket is closed. It is not a ``multiprocessing`` process, because those import the
trainer's script and with it torch.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import importlib.util
import inspect
import signal
import socket
import sys
import time
from functools import reduce
from typing import Any

from areal_trainer.reward.function import (
    ANY_SCRIPT,
    FunctionReference,
    RewardFunction,
    checked_reward,
    describe_exception,
)
from areal_trainer.reward.messages import CallResult, WorkerReady, WorkerSetup, frame, receive


def main() -> None:
    """Run calls until the trainer closes the socket."""
    _exit_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer handles Ctrl-C and closes the socket
    with socket.socket(fileno=int(sys.argv[1])) as channel, channel.makefile("rb") as inbox:
        setup: WorkerSetup = receive(inbox)
        try:
            function = _load_function(setup.function)
        except Exception as error:  # noqa: BLE001  # user code may raise anything; the trainer reports it
            channel.sendall(frame(WorkerReady(error=describe_exception(error), concurrent=False)))
            return
        concurrent = inspect.iscoroutinefunction(function)
        channel.sendall(frame(WorkerReady(error=None, concurrent=concurrent)))
        run_calls = _call_concurrently if concurrent else _call_sequentially
        with asyncio.Runner() as runner:
            while (calls := receive(inbox)) is not None:
                try:
                    run_calls(function, calls, channel=channel, runner=runner, timeout_s=setup.timeout_s)
                except ConnectionError:  # the trainer exited
                    return


def _call_sequentially(
    function: RewardFunction,
    calls: list[tuple[int, dict[str, Any]]],
    *,
    channel: socket.socket,
    runner: asyncio.Runner,
    timeout_s: float,
) -> None:
    for number, arguments in calls:
        start = time.perf_counter()
        try:
            value = function(**arguments)
            if inspect.isawaitable(value):  # returned by a function that is not declared async
                value = runner.run(_await(value))
            answer = CallResult(number, checked_reward(value), seconds=time.perf_counter() - start)
        except Exception as error:  # noqa: BLE001  # user code may raise anything; it becomes a RewardError
            answer = CallResult(number, error=describe_exception(error), seconds=time.perf_counter() - start)
        channel.sendall(frame(answer))


def _call_concurrently(
    function: RewardFunction,
    calls: list[tuple[int, dict[str, Any]]],
    *,
    channel: socket.socket,
    runner: asyncio.Runner,
    timeout_s: float,
) -> None:
    async def call(number: int, arguments: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                answer = CallResult(number, checked_reward(await function(**arguments)))
        except TimeoutError:
            answer = CallResult(number, error=f"it took more than reward.timeout = {timeout_s:g} s")
        except Exception as error:  # noqa: BLE001  # as above
            answer = CallResult(number, error=describe_exception(error))
        channel.sendall(frame(answer))

    async def call_all() -> None:
        await asyncio.gather(*(call(number, arguments) for number, arguments in calls))

    runner.run(call_all())


async def _await(value: Any) -> Any:
    return await value


def _load_function(reference: FunctionReference) -> RewardFunction:
    if reference.module != ANY_SCRIPT:
        return _attribute(importlib.import_module(reference.module), reference.name)
    assert reference.script is not None
    spec = importlib.util.spec_from_file_location("__reward_script__", reference.script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return _attribute(module, reference.name)


def _attribute(module: Any, name: str) -> Any:
    return reduce(getattr, name.split("."), module)


def _exit_with_parent() -> None:
    """Have the kernel kill this process when the trainer dies; a hung call would not notice the closed socket."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


if __name__ == "__main__":
    main()
