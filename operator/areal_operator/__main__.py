"""``python -m areal_operator``: runs until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

from areal_api import logs
from areal_operator.app import operate
from areal_operator.settings import Settings


async def _main(settings: Settings) -> None:
    stop, watching = asyncio.Event(), asyncio.Event()

    async def catch_signals() -> None:
        await watching.wait()  # kopf has set its own handlers by now; it would end without giving up the Lease
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)

    async with asyncio.TaskGroup() as group:
        catching = group.create_task(catch_signals())
        await operate(settings, stop, watching)
        catching.cancel()


def main() -> int:
    """Run; the exit status is 2 for a setting that cannot be used."""
    logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        logs.set_up()
        settings = Settings.from_env(os.environ)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    asyncio.run(_main(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
