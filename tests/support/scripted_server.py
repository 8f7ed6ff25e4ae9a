"""A server that speaks SGLang's HTTP contract without a model: answers, delays and faults come from a script.

In a test: ``with ScriptedServer(Script(token_s=0.001)) as server: ... server.address``. As a separate process:
``python -m support.scripted_server --port 0 --script '{"token_s": 0.001}'``; it prints ``listening on HOST:PORT``.
It passes the parts of tests/contract that need no model. Its answers are defined in `scripted_answers`.

While it runs, ``POST /script/faults [{"kind": "cut", "times": 1}]`` adds faults and ``GET /script/counts``
returns the number of requests of each path; in a test: `add_faults`, `counts`, `kill`, `restart`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

from aiohttp import web

from support.scripted_answers import Fault, Script
from support.scripted_service import ScriptedService

__all__ = ["Fault", "Script", "ScriptedServer"]


class ScriptedServer:
    """A scripted server in its own thread; `address` is "host:port" once it is entered."""

    def __init__(self, script: Script | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.script = script if script is not None else Script()
        self.host, self.port = host, port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="scripted-server", daemon=True)
        self._started = threading.Event()
        self._failed: BaseException | None = None
        self._runner: web.ServerRunner | None = None
        self._service: ScriptedService | None = None

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def counts(self) -> dict[str, int]:
        """Requests of each path so far (since the last restart)."""
        return dict(self._now.counts)

    @property
    def connections(self) -> int:
        """Number of open connections."""
        assert self._runner is not None
        assert self._runner.server is not None
        return len(self._runner.server.connections)

    @property
    def weight_version(self) -> str:
        return self._now.version

    @property
    def model_path(self) -> str:
        """The directory that was loaded last."""
        return self._now.model_path

    @property
    def tokens_in_flight(self) -> int:
        """Tokens generated so far for requests in flight."""
        return self._now.tokens_in_flight()

    @property
    def _now(self) -> ScriptedService:
        assert self._service is not None, "the scripted server has not been started"
        return self._service

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        if not self._started.wait(10.0):
            raise TimeoutError("the scripted server did not listen within 10 s")
        if self._failed is not None:
            raise self._failed
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)

    def add_faults(self, *faults: Fault) -> None:
        self._now.faults.extend(faults)

    def release(self) -> None:
        """Answer the requests that a fault "hold" holds back."""
        self._loop.call_soon_threadsafe(self._now.released.set)

    def drain(self) -> None:
        """Behave like a server that received SIGTERM and still has requests to finish."""
        self._now.draining = True

    def kill(self) -> None:
        """Cut every connection and refuse new ones, like a dead process."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10.0)

    def restart(self, down_s: float = 0.0) -> None:
        """Cut every connection, refuse new ones for `down_s`, then serve the script's first weight version again."""
        asyncio.run_coroutine_threadsafe(self._reopen(down_s), self._loop).result(10.0 + down_s)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._listen())
        except OSError as error:
            self._failed = error
        self._started.set()
        if self._failed is None:
            self._loop.run_forever()
            pending = asyncio.all_tasks(self._loop)
            for task in pending:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        self._loop.close()

    async def _listen(self) -> None:
        self._service = ScriptedService(self.script, die=self._die_soon, restart=self._restart_soon)
        self._runner = web.ServerRunner(web.Server(self._service.handle, access_log=None), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, reuse_address=True, backlog=4096)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _close(self) -> None:
        runner, self._runner = self._runner, None
        if runner is None:
            return
        server = runner.server
        for site in list(runner.sites):
            await site.stop()
        if server is not None:
            for connection in list(server.connections):
                if connection.transport is not None:
                    connection.transport.abort()
        await runner.cleanup()

    async def _reopen(self, down_s: float) -> None:
        await self._close()
        await asyncio.sleep(down_s)
        # A new process starts without faults bound to a request count.
        self.script = replace(self.script, faults=())
        await self._listen()

    def _die_soon(self) -> None:
        self._loop.create_task(self._close())

    def _restart_soon(self, down_s: float) -> None:
        self._loop.create_task(self._reopen(down_s))


class _Process(ScriptedServer):
    """Run the server as a process, which really dies."""

    def _die_soon(self) -> None:
        os._exit(1)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m support.scripted_server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 for any free port")
    parser.add_argument("--script", default="{}", help="a JSON object with the fields of Script, or a file with it")
    options = parser.parse_args(argv)
    text = options.script if options.script.lstrip().startswith("{") else Path(options.script).read_text()
    with _Process(Script.from_json(text), host=options.host, port=options.port) as server:
        print(f"listening on {server.address}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1:])
