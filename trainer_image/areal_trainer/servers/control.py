"""Administrative requests to one server: version, readiness, pause, and loading weights from disk."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from areal_api import names
from areal_api.time_limits import TimeLimits
from areal_trainer.servers.client import Client, ServerBusyError, ServerLostError, ServerRefusedError
from areal_trainer.servers.fleet import Server, Target
from areal_trainer.weights.disk import MANIFEST, verify_published

PAUSE: dict[str, Any] = {"mode": "retract"}  # in_place would reuse the KV cache of the old weights
BASE_WEIGHTS = "default"  # SGLang's version name for the weights that it was started with
CONTROL_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class ServerTimings:
    """Intervals and timeouts in dealing with servers."""

    probe_period_s: float = 5.0  # between probes of a current server
    probe_timeout_s: float = 10.0
    probe_failures: int = 3  # consecutive timeouts after which a server that accepts connections counts as gone
    min_backoff_s: float = 0.05  # between attempts to reach a server that is not current
    max_backoff_s: float = 1.0  # bounds how long a server that has become ready waits for its first request
    retry_wait_s: float = 0.1  # before a request is retried after a transient error; doubles with each attempt
    abort_timeout_s: float = 10.0  # for servers to end their part of an aborted broadcast


class ServerControl:
    """Sends administrative requests. Use only on the engine's event loop."""

    def __init__(
        self, client: Client, *, limits: TimeLimits, timings: ServerTimings, weights_url: str | None = None
    ) -> None:
        """``weights_url``: where servers that do not see the run directory download published versions from."""
        self.client = client
        self._weights_url = weights_url
        self.limits = limits
        self.timings = timings

    async def post(
        self, server: Server, path: str, body: dict[str, Any], *, timeout_s: float = CONTROL_TIMEOUT_S
    ) -> Any:
        """POST an idempotent request; retried once if a kept-alive connection was closed."""
        try:
            return await self.client.post(server.url(path), body, timeout_s=timeout_s)
        except ServerLostError as error:
            if isinstance(error.__cause__, TimeoutError):
                raise
            return await self.client.post(server.url(path), body, timeout_s=timeout_s)

    async def reported_version(self, server: Server) -> str:
        """The weight version that the server reports."""
        info = await self.client.get(server.url("/model_info"), timeout_s=self.timings.probe_timeout_s)
        return str(info["weight_version"])

    async def learn_capacity(self, server: Server) -> None:
        """Ask the server how many tokens its KV cache holds, over all of its data-parallel ranks.

        Raises ``ServerRefusedError`` if it does not report a number.
        """
        info = await self.client.get(server.url("/server_info"), timeout_s=CONTROL_TIMEOUT_S)
        tokens, ranks = info.get("max_total_num_tokens"), info.get("dp_size", 1)
        if not isinstance(tokens, int) or not isinstance(ranks, int) or tokens < 1 or ranks < 1:
            raise ServerRefusedError(
                f"{server.address}: /server_info has max_total_num_tokens {tokens!r} and dp_size {ranks!r}"
            )
        server.capacity = tokens * ranks

    async def readiness_error(self, server: Server) -> ServerBusyError | None:
        """Why a server that is not paused accepts no requests: it is starting or draining. None if it does accept."""
        try:
            await self.client.check(server.url("/ready"), timeout_s=self.timings.probe_timeout_s)
        except ServerBusyError as error:
            return error
        return None

    async def check_version(self, server: Server, target: Target) -> None:
        """Raise ``ServerRefusedError`` unless the server reports ``target``."""
        reported = await self.reported_version(server)
        if reported != names.weight_version(target.version):
            raise ServerRefusedError(
                f"{server.address} reports {reported!r} after loading {names.weight_version(target.version)}"
            )
        server.version = target.version

    async def load_from_disk(self, server: Server, target: Target) -> None:
        """Pause, load, check the reported version, continue.

        Generation resumes even if loading fails. The caller holds ``server.lock``.
        """
        path = await self._path_for(server, target)
        await self.post(server, "/pause_generation", PAUSE)
        try:
            body = {"model_path": path, "weight_version": names.weight_version(target.version)}
            await self.post(server, "/update_weights_from_disk", body, timeout_s=self.limits.weight_load_s)
            await self.check_version(server, target)
        finally:
            await self.post(server, "/continue_generation", {})

    async def _path_for(self, server: Server, target: Target) -> str:
        """The directory that the server loads. Without a shared one it downloads the version first, not paused yet."""
        assert target.path is not None
        if self._weights_url is None or not (target.path / MANIFEST).is_file():
            # A path that does not exist here is a name on the Hugging Face hub.
            return str(target.path.absolute() if target.path.exists() else target.path)
        manifest = json.loads(await asyncio.to_thread((target.path / MANIFEST).read_text))
        body = {"url": self._weights_url, "version": target.path.name, "files": manifest["files"]}
        body["deltas"] = manifest.get("deltas", {})  # an older release wrote none
        answer = await self.post(server, names.SERVER_WEIGHTS_PATH, body, timeout_s=self.limits.weight_load_s)
        return str(answer["path"])

    async def sync_weights(self, server: Server, target: Target) -> None:
        """Make the server hold ``target`` and continue it: a killed trainer may have left it paused.

        Raises ``ServerRefusedError`` if it holds other weights and ``target`` is not on disk.
        """
        reported, expected = await self.reported_version(server), names.weight_version(target.version)
        if reported == BASE_WEIGHTS and target.version == 0:
            # Rename the base weights: "default" then reveals a restart.
            body = {"new_version": expected, "abort_all_requests": False}
            await self.post(server, "/update_weight_version", body)
        elif reported == expected and (server.version == target.version or target.path is None or target.version == 0):
            pass  # otherwise it may be another trainer's v<N>: same number, possibly other weights
        elif target.path is not None:
            if target.version > 0:  # a base model has no manifest
                await _verify_files(target.path)
            await self.load_from_disk(server, target)
            return
        else:
            raise ServerRefusedError(f"it reports {reported!r}, not {expected!r}, and {expected} is not on disk")
        server.version = target.version
        await self.post(server, "/continue_generation", {})

    async def while_alive(self, server: Server, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work``, but raise ``ServerLostError`` once the server stops answering probes.

        A server that loads weights or is paused still answers other requests at once. Without the probes, a hanging
        server would hold up all others until the timeout of ``work``.
        """
        task = asyncio.create_task(work)
        silent = 0
        try:
            while not (await asyncio.wait([task], timeout=0 if silent else self.timings.probe_period_s))[0]:
                try:
                    await self.readiness_error(server)
                    silent = 0
                except ServerLostError:
                    silent += 1
                    if silent == self.timings.probe_failures:
                        raise
            await task
        finally:
            while not task.done():  # its cleanup may wait for the server too
                task.cancel()
                await asyncio.wait([task], timeout=self.timings.min_backoff_s)


async def _verify_files(path: Path) -> None:
    """Refuse files that differ from their manifest: SGLang crashes on corrupt files, or reports success."""
    try:
        await asyncio.to_thread(verify_published, path)
    except (OSError, ValueError) as error:
        raise ServerRefusedError(f"published weights cannot be loaded: {error}") from error
