"""Rank 0's half of the engine: the event loop, the servers, and the executor of episodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from areal_api import stat_names
from areal_api.config import RolloutConfig
from areal_api.time_limits import TimeLimits
from areal_trainer.rollout.episode import Episode, Interrupted, Prompt, RolloutError, run_prompts
from areal_trainer.rollout.executor import Executor
from areal_trainer.rollout.loop import LoopThread
from areal_trainer.rollout.statistics import BatchClock
from areal_trainer.rollout.workflow import GenerationEngine
from areal_trainer.routing import Routing
from areal_trainer.servers.addresses import ServerAddresses
from areal_trainer.servers.client import Client
from areal_trainer.servers.control import ServerControl, ServerTimings
from areal_trainer.servers.fleet import Fleet, ServerStatus, Target
from areal_trainer.servers.generation import ModelRequest, ModelResponse
from areal_trainer.servers.sampler import Sampler
from areal_trainer.servers.watcher import Watcher
from areal_trainer.servers.weight_update import BroadcastError, WeightUpdater
from areal_trainer.tracing import span
from areal_trainer.trajectory import Trajectory
from areal_trainer.weights.disk import WeightUpdate

T = TypeVar("T")


class RolloutSession:
    """Runs all HTTP requests, episodes and reward calls of a run on one event loop in a background thread.

    The trainer's thread calls the methods; ``sample`` is awaited by workflows.
    """

    def __init__(
        self,
        engine: GenerationEngine,
        config: RolloutConfig,
        limits: TimeLimits,
        executor: Executor,
        *,
        addresses: ServerAddresses,
        target: Target,
        vocab_size: int | None,
        api_key: str | None,
        timings: ServerTimings,
        weights_url: str | None = None,
        routing: Routing | None = None,
    ) -> None:
        """``engine`` is passed to workflows. Nothing is sent before ``start``."""
        self._engine = engine
        self._config = config
        self._executor = executor
        self._version = target.version
        self._pending_updates = 0
        self._interrupted = asyncio.Event()
        self._batch_clock = BatchClock()
        self._loop = LoopThread("rollout")
        self._client = self._loop.call(lambda: Client(api_key=api_key))
        self._fleet = Fleet(addresses.first, target=target, wait_s=limits.setup_s)
        control = ServerControl(self._client, limits=limits, timings=timings, weights_url=weights_url)
        self._watcher = Watcher(self._fleet, control, addresses)
        self._updater = WeightUpdater(self._fleet, control)
        self._sampler = Sampler(
            self._fleet,
            self._client,
            timings=timings,
            request_timeout_s=config.request_timeout,
            retries=config.request_retries,
            vocab_size=vocab_size,
            routing=routing,
        )
        self._executor.start_at(target.version)

    def start(self) -> None:
        """Connect to the servers; returns when all were probed and one is ready, otherwise ``NoServerError``."""
        self._loop.run(self._watcher.start())

    def close(self) -> None:
        """Cancel all episodes and close all connections."""
        self._loop.run(self._shut_down())
        self._loop.close()

    async def _shut_down(self) -> None:
        await self._executor.close()
        await self._watcher.close()
        await self._updater.close()
        await self._client.close()

    # Generation

    async def sample(self, request: ModelRequest, n: int) -> list[ModelResponse]:
        """``n`` completions of one prompt; may be awaited on any event loop. See ``Sampler.sample`` for the errors."""
        if asyncio.get_running_loop() is self._loop.loop:
            return await self._sampler.sample(request, n)
        return await asyncio.wrap_future(self._loop.start(self._sampler.sample(request, n)))

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """The response of a server; may be awaited on any event loop. See ``Sampler.post`` for the errors."""
        return await asyncio.wrap_future(self._loop.start(self._sampler.post(path, body)))

    def sample_all(self, requests: Sequence[ModelRequest], n: int) -> None:
        """``n`` completions of each request, concurrently; the completions are discarded."""

        async def generate() -> None:
            await asyncio.gather(*(self._sampler.sample(request, n) for request in requests))

        self._loop.run(generate())

    # Episodes

    def feed(self, prompts: list[Prompt]) -> None:
        """Append prompts to the executor's queue."""
        self._loop.call(lambda: self._executor.feed(prompts))

    def take(self, count: int, *, feeding: bool, timeout_s: float | None = None) -> list[Episode] | None:
        """The next ``count`` accepted episodes; with ``feeding`` None if the executor needs more prompts first."""
        return self._loop.run(self._take(count, feeding=feeding), timeout_s=timeout_s)

    async def _take(self, count: int, *, feeding: bool) -> list[Episode] | None:
        return await self._executor.take(count, feeding=feeding, update_pending=lambda: self._pending_updates > 0)

    def run_episodes(self, prompts: list[Prompt]) -> list[list[Trajectory]]:
        """One episode per prompt, outside the staleness gate, in the order of the prompts. Raises ``Interrupted``."""
        episodes = run_prompts(
            self._engine,
            prompts,
            max_concurrent=self._config.max_concurrent_rollouts,
            max_failed=self._config.max_failed_episodes,
        )
        return self._loop.run(self._unless_interrupted(episodes))

    async def _unless_interrupted(self, work: Coroutine[Any, Any, T]) -> T:
        interrupted = asyncio.create_task(self._interrupted.wait())
        task = asyncio.create_task(work)
        try:
            await asyncio.wait([task, interrupted], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Interrupted
            return task.result()
        finally:
            interrupted.cancel()
            task.cancel()

    def count_ungated(self, count: int) -> None:
        """See ``Executor.count_ungated``."""
        self._loop.call(lambda: self._executor.count_ungated(count))

    def record_batch(self, trajectories: Sequence[Trajectory], *, started: float) -> dict[str, float]:
        """Statistics of a batch the trainer has taken. ``started``: when it was asked for."""
        (counters, step), servers = self._loop.call(lambda: (self._executor.take_counters(), self._server_statistics()))
        waited_s = time.perf_counter() - started
        return servers | self._batch_clock.statistics(trajectories, counters, step=step, waited_s=waited_s)

    def take_rejected(self) -> list[Trajectory]:
        """See ``Executor.take_rejected``."""
        return self._loop.call(self._executor.take_rejected)

    def _server_statistics(self) -> dict[str, float]:
        taken = {
            stat_names.CACHE_HIT_RATE: self._sampler.take_cache_hit_rate(),
            stat_names.SERVERS_IDLE: self._fleet.take_idle_share(),
        }
        return self._fleet.statistics() | {name: value for name, value in taken.items() if value is not None}

    def interrupt(self) -> None:
        """Make ``take`` and ``run_episodes`` raise ``Interrupted``, and weight updates wait for no server.

        Safe in a signal handler.
        """
        self._loop.loop.call_soon_threadsafe(self._executor.stop, Interrupted())
        self._loop.loop.call_soon_threadsafe(self._updater.end_run)
        self._loop.loop.call_soon_threadsafe(self._interrupted.set)

    def pause(self) -> None:
        """Start no more episodes; running ones continue."""
        self._loop.call(self._executor.pause)

    def resume(self) -> None:
        """Start episodes again."""
        self._loop.call(self._executor.resume)

    def state_dict(self) -> dict[str, Any]:
        """See ``Executor.state_dict``."""
        return self._loop.call(self._executor.state_dict)

    def load_state_dict(self, state: dict[str, Any], *, total_batches: int | None) -> list[dict[str, Any]]:
        """See ``Executor.load_state_dict``."""
        load = self._executor.load_state_dict
        return self._loop.call(lambda: load(state, version=self._version, total_batches=total_batches))

    def discard_episodes(self) -> None:
        """See ``Executor.discard``."""
        self._loop.run(self._executor.discard())

    # Weights

    @property
    def version(self) -> int:
        """Weight version that the current servers hold."""
        return self._version

    def update_weights(self, update: WeightUpdate) -> None:
        """Bring the current servers to ``update`` and wait for it."""
        self._loop.wait(self.update_weights_async(update))

    def update_weights_async(self, update: WeightUpdate) -> Future[None]:
        """The same in the background. Until it is done, episodes start under the old version."""
        self._pending_updates += 1
        return self._loop.start(self._update(update))

    async def _update(self, update: WeightUpdate) -> None:
        try:
            await self._executor.hold_weights(update.version)
            with span("weight_update", version=update.version, broadcast=update.broadcast is not None):
                await self._updater.publish(update)
            self._version = update.version
            self._executor.set_version(update.version)
        except BroadcastError:
            raise  # the caller may publish again, from a directory
        except BaseException as error:
            self._executor.stop(error if isinstance(error, Exception) else RolloutError(f"weight update: {error!r}"))
            raise
        finally:
            self._pending_updates -= 1
            self._executor.notify()

    def set_version(self, version: int) -> None:
        """Declare that the servers already hold ``version``; those that report another one get no requests."""
        self._version = version
        self._loop.call(lambda: self._set_version(version))

    def _set_version(self, version: int) -> None:
        if version != self._fleet.target.version:
            self._fleet.set_target(Target(version))
        self._executor.set_version(version)

    def servers(self) -> list[ServerStatus]:
        """A snapshot of every server's state."""
        return self._loop.call(lambda: [server.status for server in self._fleet.servers])
