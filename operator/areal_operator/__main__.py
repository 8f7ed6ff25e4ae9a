"""``python -m areal_operator``: runs until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable

from areal_api import logs
from areal_api.errors import describe
from areal_operator.settings import Settings

# The API server stores objects nested up to 10,000 levels deep. One of them must not end a watch or a listing, so the
# operator runs in a thread whose stack is large enough to parse and copy it.
RECURSION_LIMIT = 60_000
STACK_BYTES = 512 * 2**20  # address space; only what is used becomes memory
# New objects until a collection of cycles. The default of 700 collects for nearly every object of the API server, and
# JSON has no cycles.
GC_THRESHOLDS = (10_000, 20, 50)


async def _run(settings: Settings, started: Callable[[asyncio.AbstractEventLoop, asyncio.Event], None]) -> None:
    from areal_operator.app import run_operator

    gc.freeze()  # modules and classes, which stay
    gc.set_threshold(*GC_THRESHOLDS)
    stop = asyncio.Event()
    started(asyncio.get_running_loop(), stop)
    await run_operator(settings, stop, asyncio.Event())


def run_until_signal(settings: Settings) -> None:
    """Run the operator in a thread with a large stack, until SIGTERM or SIGINT; raises what ended it."""
    errors: list[BaseException] = []
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    ready = threading.Event()

    def started(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
        loops.append((loop, stop))
        ready.set()

    def target() -> None:
        try:
            asyncio.run(_run(settings, started))
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            errors.append(error)
        finally:
            ready.set()

    def on_signal(*_: object) -> None:
        for loop, stop in loops:
            loop.call_soon_threadsafe(stop.set)

    sys.setrecursionlimit(RECURSION_LIMIT)
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=target, name="operator")
    thread.start()
    ready.wait()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    while thread.is_alive():
        thread.join(1.0)  # with a timeout, so that signal handlers run
    if errors:
        raise errors[0]


def leave_out_kubernetes() -> None:
    """Let kopf not import the package ``kubernetes``, if it is installed for other programs: it takes 23 MB and half a
    second of CPU time, and kopf only wants to recognise its objects, of which this process has none."""
    sys.modules.setdefault("kubernetes", None)  # type: ignore[arg-type]  # an import of it fails as if it were missing


def main() -> int:
    """Run the operator; the exit status is 2 for a setting or a Secret that cannot be used."""
    leave_out_kubernetes()
    logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        logs.set_up()
        run_until_signal(Settings.from_env(os.environ))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        cause = f" ({describe(error.__cause__)})" if error.__cause__ is not None else ""
        print(f"error: {error}{cause}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
