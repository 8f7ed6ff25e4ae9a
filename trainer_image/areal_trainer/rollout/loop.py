"""An event loop in a background thread, for synchronous callers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")
_ALIVE_CHECK_S = 1.0


class LoopThread:
    """Owns an event loop in its own thread and runs coroutines on it from other threads."""

    def __init__(self, name: str) -> None:
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine in the background."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def run(self, coroutine: Coroutine[Any, Any, T], *, timeout_s: float | None = None) -> T:
        """Run a coroutine and wait for its result; ``TimeoutError`` cancels it."""
        return self.wait(self.start(coroutine), timeout_s=timeout_s)

    def wait(self, future: Future[T], *, timeout_s: float | None = None) -> T:
        """The result of a future from ``start``; raises ``RuntimeError`` if the thread has ended."""
        left_s = timeout_s
        while True:
            wait_s = _ALIVE_CHECK_S if left_s is None else min(left_s, _ALIVE_CHECK_S)
            try:
                return future.result(wait_s)
            except FutureTimeoutError:
                if future.done():
                    raise
                if not self._thread.is_alive():
                    raise RuntimeError(f"thread {self._thread.name} has ended") from None
                if left_s is not None:
                    left_s -= wait_s
                    if left_s <= 0:
                        future.cancel()
                        raise

    def call(self, function: Callable[[], T]) -> T:
        """Call a plain function on the loop and wait for its result."""

        async def called() -> T:
            return function()

        return self.run(called())

    def close(self) -> None:
        """Stop the loop and join the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
