"""A process of the reward pool: ``python -m areal_trainer.reward.worker <file descriptor>``.

It reads pickled batches of calls from the descriptor, a socket to the trainer, and answers each call as soon as it is
done. It ends when the socket does. Not a ``multiprocessing`` process: those import the trainer's script, and
torch with it.
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

from areal_trainer.reward.function import ANY_SCRIPT, FunctionAddress, RewardFunction, checked_reward, explained
from areal_trainer.reward.messages import Answer, Hello, Ready, frame, receive


def main() -> None:
    """Serve calls until the trainer closes the socket."""
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's; it closes the socket
    with socket.socket(fileno=int(sys.argv[1])) as channel, channel.makefile("rb") as inbox:
        hello: Hello = receive(inbox)
        try:
            function = _find(hello.address)
        except Exception as error:  # noqa: BLE001  # the user's module may raise anything; the trainer reports it
            channel.sendall(frame(Ready(problem=explained(error), concurrent=False)))
            return
        concurrent = inspect.iscoroutinefunction(function)
        channel.sendall(frame(Ready(problem=None, concurrent=concurrent)))
        serve = _serve_side_by_side if concurrent else _serve_in_turn
        with asyncio.Runner() as runner:
            while (calls := receive(inbox)) is not None:
                try:
                    serve(function, calls, channel=channel, runner=runner, timeout_s=hello.timeout_s)
                except ConnectionError:  # the trainer has gone
                    return


def _serve_in_turn(
    function: RewardFunction,
    calls: list[tuple[int, dict[str, Any]]],
    *,
    channel: socket.socket,
    runner: asyncio.Runner,
    timeout_s: float,
) -> None:
    for number, arguments in calls:
        began = time.perf_counter()
        try:
            value = function(**arguments)
            if inspect.isawaitable(value):  # of a function that is not declared async
                value = runner.run(_wait(value))
            answer = Answer(number, checked_reward(value), seconds=time.perf_counter() - began)
        except Exception as error:  # noqa: BLE001  # the user's function may raise anything; it becomes a RewardError
            answer = Answer(number, problem=explained(error), seconds=time.perf_counter() - began)
        channel.sendall(frame(answer))


def _serve_side_by_side(
    function: RewardFunction,
    calls: list[tuple[int, dict[str, Any]]],
    *,
    channel: socket.socket,
    runner: asyncio.Runner,
    timeout_s: float,
) -> None:
    async def one(number: int, arguments: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                answer = Answer(number, checked_reward(await function(**arguments)))
        except TimeoutError:
            answer = Answer(number, problem=f"it took more than reward.timeout = {timeout_s:g} s")
        except Exception as error:  # noqa: BLE001  # as above
            answer = Answer(number, problem=explained(error))
        channel.sendall(frame(answer))

    async def every() -> None:
        await asyncio.gather(*(one(number, arguments) for number, arguments in calls))

    runner.run(every())


async def _wait(value: Any) -> Any:
    return await value


def _find(address: FunctionAddress) -> RewardFunction:
    if address.module != ANY_SCRIPT:
        return _named(importlib.import_module(address.module), address.name)
    assert address.script is not None
    spec = importlib.util.spec_from_file_location("__reward_script__", address.script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return _named(module, address.name)


def _named(module: Any, name: str) -> Any:
    return reduce(getattr, name.split("."), module)


def _end_with_parent() -> None:
    """Ask the kernel to kill this process when the trainer dies: a hung call would not see the closed socket."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


if __name__ == "__main__":
    main()
