"""The rollout engine: AReaL's interface in front of the fleet of SGLang servers and the executor of episodes.

One event loop in one background thread does all HTTP, episodes and reward calls of a run; it belongs to rank 0. The
trainer's thread calls the methods below; workflows, which run on that loop, call ``agenerate`` and ``agenerate_n``.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from areal_api import names
from areal_api.config import RolloutConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.rollout.dump import dump_samples
from areal_trainer.rollout.executor import Accept, Episode, Executor, Interrupted, Prompt, RolloutError, run_prompts
from areal_trainer.rollout.loop import LoopThread
from areal_trainer.rollout.rank_channel import Sharing, shares
from areal_trainer.rollout.staleness import StalenessGate
from areal_trainer.rollout.statistics import BatchClock
from areal_trainer.rollout.workflow import RolloutWorkflow
from areal_trainer.servers.client import Client
from areal_trainer.servers.fleet import Fleet, Target
from areal_trainer.servers.generation import ModelRequest, ModelResponse
from areal_trainer.servers.sampler import Sampler
from areal_trainer.servers.weight_update import BroadcastError, publish
from areal_trainer.trajectory import Trajectory
from areal_trainer.weights.disk import WeightUpdate

__all__ = ["ModelRequest", "ModelResponse", "RemoteSGLangEngine"]

Rows = list[dict[str, Any]]


class RemoteSGLangEngine:
    """Generates on remote SGLang servers and turns rows of data into batches of trajectories.

    ``prepare_batch`` and ``rollout_batch`` are collective over the trainer's ranks; all else is done by rank 0, and the
    other ranks' calls of it only keep the version.
    """

    def __init__(
        self,
        config: RolloutConfig,
        *,
        batch_size: int | None = None,
        max_staleness: int | None = None,
        total_batches: int | None = None,
        dump_dir: Path | None = None,
    ) -> None:
        """``batch_size`` (episodes a step), ``max_staleness``: default to ``config``. ``total_batches``: nothing is
        generated for steps beyond. ``dump_dir``: where trained samples are written, with ``config.dump_to_file``."""
        size = batch_size or config.consumer_batch_size
        if size is None:
            raise ValueError(
                "rollout.consumer_batch_size is null; set it, or give batch_size (GRPOConfig.consumer_batch_size)"
            )
        self._config = config
        self._batch_size = size
        self._gate = StalenessGate(
            batch_size=size,
            max_staleness=config.max_head_offpolicyness if max_staleness is None else max_staleness,
            max_concurrent=config.max_concurrent_rollouts or size,
        )
        self._executor = Executor(
            self,
            self._gate,
            max_failed=config.max_failed_episodes,
            queue_size=config.queue_size,
            total_batches=total_batches,
        )
        self._dump_dir = dump_dir if config.dump_to_file else None
        self._sharing: Sharing | None = None  # from initialize to destroy
        self._version = 0
        self._updates_under_way = 0
        self._returned_rows: Rows = []
        self._loader: Iterable[Rows] | None = None
        self._rows: Iterator[Rows] = iter(())
        self._clock = BatchClock()
        self.statistics: dict[str, float] = {}  # of the last batch, on every rank

    def initialize(
        self, addrs: list[str] | None = None, *, vocab_size: int | None = None, weights: WeightUpdate | None = None
    ) -> None:
        """Collective. Connect to the servers at ``addrs`` (host:port; default AREAL_LLM_SERVER_ADDRS).

        Returns when every server was asked once and one holds ``weights``: those a run goes on from, by default the
        servers' own as version 0. Raises ``NoServerError`` after ``rollout.setup_timeout``.
        """
        self._sharing = Sharing()
        self._is_first = self._sharing.rank == 0
        self._version = weights.version if weights else 0
        if not self._is_first:
            return
        addresses = _addresses() if addrs is None else addrs
        target = Target(weights.version, weights.path) if weights else Target()
        self._loop = LoopThread("rollout")
        try:
            self._loop.run(self._connect(addresses, target, vocab_size))
        except BaseException:
            self.destroy()
            raise

    async def _connect(self, addresses: list[str], target: Target, vocab_size: int | None) -> None:
        config = self._config
        self._client = Client(api_key=_api_key())
        self._update_lock = asyncio.Lock()
        self._fleet = Fleet(
            addresses,
            self._client,
            target=target,
            wait_s=config.setup_timeout,
            load_timeout_s=config.setup_timeout,
        )
        self._sampler = Sampler(
            self._fleet,
            self._client,
            request_timeout_s=config.request_timeout,
            retries=config.request_retries,
            vocab_size=vocab_size,
        )
        self._gate.resume(target.version)
        self._executor.start_at(target.version)
        await self._fleet.start()

    def destroy(self) -> None:
        """Cancel what runs and close all connections; the servers stay. Nothing to do when it is not initialized."""
        if self._sharing is None:
            return
        if self._is_first:
            self._loop.run(self._disconnect())
            self._loop.close()
        self._sharing.close()
        self._sharing = None

    async def _disconnect(self) -> None:
        await self._executor.close()
        await self._fleet.close()
        await self._client.close()

    # Generation, for workflows

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        """One completion."""
        return (await self.agenerate_n(request, 1))[0]

    async def agenerate_n(self, request: ModelRequest, n: int) -> list[ModelResponse]:
        """``n`` completions of one prompt, from one server; see ``Sampler.sample`` for the errors."""
        if asyncio.get_running_loop() is self._loop.loop:
            return await self._sampler.sample(request, n)
        return await asyncio.wrap_future(self._loop.start(self._sampler.sample(request, n)))

    def generate_and_forget(self, prompts: list[list[int]], gconfig: GenerationHyperparameters, *, n: int) -> None:
        """Rank 0. ``n`` answers to each of ``prompts``, side by side, for what servers do at their first requests."""

        async def generate() -> None:
            requests = [ModelRequest(input_ids, gconfig) for input_ids in prompts]
            await asyncio.gather(*(self._sampler.sample(request, n) for request in requests))

        self._loop.run(generate())

    # Episodes

    def prepare_batch(
        self, dataloader: Iterable[Rows], workflow: RolloutWorkflow, accept: Accept | None = None
    ) -> list[Trajectory]:
        """Collective. The next batch of accepted episodes, as old as η allows; this rank's share of it.

        Reads the loaders of all ranks as far as the gate allows, epoch after epoch. With η = 0 this is synchronous.
        ``accept`` refuses episodes (DAPO); they are replaced by others. Raises ``RolloutError``, ``NoServerError`` or
        ``WeightUpdateError`` (of an update in the background) instead of waiting for what cannot come.
        """
        started = time.perf_counter()
        if self._is_first and self._returned_rows:
            rows, self._returned_rows = self._returned_rows, []
            self._feed(rows, workflow, accept)
        while True:
            batch, error = self._try_to_take() if self._is_first else (None, None)
            if self._agree(error, done=batch is not None):
                return self._deliver([t for episode in batch or () for t in episode.trajectories], started)
            gathered = self._ranks.to_first(self._read(dataloader))
            if gathered is not None:
                self._feed([row for rows in gathered for row in rows], workflow, accept)

    def rollout_batch(self, data: Rows, workflow: RolloutWorkflow, accept: Accept | None = None) -> list[Trajectory]:
        """Collective. An episode for each row of all ranks, now; this rank's share of them, in the order of the rows.

        Rejected and failed episodes are missing from it. Counts as the batch of this step.
        """
        started = time.perf_counter()
        gathered = self._ranks.to_first(data)
        trajectories: list[Trajectory] = []
        failure: Exception | None = None
        if gathered is not None:
            rows = [row for part in gathered for row in part]
            try:
                trajectories = [t for part in self.run_episodes(rows, workflow, accept) for t in part]
                self._loop.call(lambda: self._executor.consume_elsewhere(self._batch_size))
            except Exception as error:  # noqa: BLE001  _agree raises it, here and on the other ranks
                failure = error
        self._agree(failure, done=True)
        return self._deliver(trajectories, started)

    def run_episodes(
        self, data: Rows, workflow: RolloutWorkflow, accept: Accept | None = None
    ) -> list[list[Trajectory]]:
        """Rank 0. An episode for each row, outside of the staleness gate: evaluation. In the rows' order.

        One that is rejected, or that fails, is empty; more than ``rollout.max_failed_episodes`` failures are raised.
        """
        prompts = [Prompt(row, workflow, accept) for row in data]
        return self._loop.run(
            run_prompts(
                self,
                prompts,
                max_concurrent=self._config.max_concurrent_rollouts,
                max_failed=self._config.max_failed_episodes,
            )
        )

    def submit(self, data: dict[str, Any], workflow: RolloutWorkflow, accept: Accept | None = None) -> None:
        """Rank 0. Queue one row; its episode starts when the gate allows."""
        self._feed([data], workflow, accept)

    def wait(self, count: int, timeout: float | None = None) -> list[Trajectory]:
        """Rank 0. Trajectories of the next ``count`` accepted episodes; ``TimeoutError`` after ``timeout`` seconds."""
        started = time.perf_counter()
        episodes = self._loop.run(self._take(count, feeding=False), timeout_s=timeout)
        assert episodes is not None
        return self._deliver([t for episode in episodes for t in episode.trajectories], started, share=False)

    def interrupt(self) -> None:
        """``prepare_batch`` raises ``Interrupted`` on every rank from now on. A signal handler may call it."""
        if self._is_first:
            self._loop.loop.call_soon_threadsafe(self._executor.stop, Interrupted())

    def pause(self) -> None:
        """Start no further episode until ``resume``; those under way go on."""
        if self._is_first:
            self._loop.call(self._executor.pause)

    def resume(self) -> None:
        """Start episodes again."""
        if self._is_first:
            self._loop.call(self._executor.resume)

    # Weights

    def update_weights(self, update: WeightUpdate) -> None:
        """Bring the current servers to ``update`` and return when they hold it; its version is then in force.

        A server that fails follows by itself from ``update.path``. Raises ``WeightUpdateError`` when none took it:
        ``BroadcastError`` where a broadcast failed and there is no path, after which one may be given.
        """
        if not self._is_first:
            self._version = update.version
            return
        self._loop.wait(self.update_weights_async(update))

    def update_weights_async(self, update: WeightUpdate) -> Future[None]:
        """Rank 0. The same in the background. Until it is done, episodes start under the old version.

        When it fails, the next ``prepare_batch`` raises its error too, unless that is a ``BroadcastError``.
        """
        self._updates_under_way += 1
        return self._loop.start(self._update(update))

    async def _update(self, update: WeightUpdate) -> None:
        try:
            async with self._update_lock:
                await publish(self._fleet, update)
                self._version = update.version
                self._executor.set_version(update.version)
        except BroadcastError:
            raise  # the caller may publish again, from a directory
        except BaseException as error:
            self._executor.stop(error if isinstance(error, Exception) else RolloutError(f"weight update: {error!r}"))
            raise
        finally:
            self._updates_under_way -= 1
            self._executor.poke()

    def current_servers(self) -> list[str]:
        """Rank 0. Addresses of the servers that take requests now."""
        return self._loop.call(lambda: [server.address for server in self._fleet.servers if server.ready])

    def servers_behind(self) -> bool:
        """Rank 0. Whether a server waits for weights that were broadcast only: the next ones should be on disk too."""
        return self._loop.call(lambda: any(server.state == "behind" for server in self._fleet.servers))

    def get_version(self) -> int:
        """Weight version that the current servers hold."""
        return self._version

    def set_version(self, version: int) -> None:
        """Say that the servers hold ``version`` already; those that say something else get no request."""
        self._version = version
        if self._is_first:
            self._loop.call(lambda: self._set_version(version))

    def _set_version(self, version: int) -> None:
        if version != self._fleet.target.version:
            self._fleet.aim(Target(version))
        self._executor.set_version(version)

    # Recovery

    def state_dict(self) -> dict[str, Any]:
        """Rank 0. Rows that were read and are in no batch yet, and counters; see ``Executor.state_dict``."""
        state = self._loop.call(self._executor.state_dict)
        return {**state, "rows": state["rows"] + self._returned_rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Rank 0, after ``initialize`` with the weights to go on from: the next batches begin with ``state``'s rows."""
        version = self._version
        self._returned_rows = self._loop.call(lambda: self._executor.load_state_dict(state, version=version))

    # Inside

    @property
    def _ranks(self) -> Sharing:
        if self._sharing is None:
            raise RuntimeError("the engine is not initialized; call initialize() first")
        return self._sharing

    def _feed(self, rows: Rows, workflow: RolloutWorkflow, accept: Accept | None) -> None:
        prompts = [Prompt(row, workflow, accept) for row in rows]
        self._loop.call(lambda: self._executor.feed(prompts))

    def _try_to_take(self) -> tuple[list[Episode] | None, Exception | None]:
        """The next batch; None when the loaders must be read first."""
        try:
            return self._loop.run(self._take(self._batch_size, feeding=True)), None
        except Exception as error:  # noqa: BLE001  _agree raises it, here and on the other ranks
            return None, error

    async def _take(self, count: int, *, feeding: bool) -> list[Episode] | None:
        return await self._executor.take(count, feeding=feeding, patient=lambda: self._updates_under_way > 0)

    def _agree(self, error: Exception | None, *, done: bool) -> bool:
        """Rank 0's ``done``, on every rank; rank 0's error is raised on every rank."""
        done, told = self._ranks.from_first((done, None if error is None else f"{type(error).__name__}: {error}"))
        if error is not None:
            raise error
        if told is not None and told.startswith(Interrupted.__name__):
            raise Interrupted
        if told is not None:
            raise RolloutError(f"on rank 0: {told}")
        return done

    def _read(self, loader: Iterable[Rows]) -> Rows:
        """The next batch of this rank's loader, which begins again at its end."""
        if self._loader is not loader:
            self._loader, self._rows = loader, iter(loader)
        rows = next(self._rows, None)
        if rows is None:
            self._rows = iter(loader)
            rows = next(self._rows, None)
        if rows is None:
            raise ValueError("the data loader gives no rows; train_dataset is smaller than a batch, or empty")
        return list(rows)

    def _deliver(self, trajectories: list[Trajectory], started: float, *, share: bool = True) -> list[Trajectory]:
        """Measure, dump and share out a batch that has left the executor."""
        mine = trajectories
        if self._is_first:
            (counters, step), servers = self._loop.call(lambda: (self._executor.account(), self._fleet.statistics()))
            self.statistics = servers | self._clock.statistics(
                trajectories, counters, step=step, waited_s=time.perf_counter() - started
            )
            if self._dump_dir is not None:
                dump_samples(trajectories, self._dump_dir, step=step)
        if share and self._ranks.size > 1:
            self.statistics = self._ranks.from_first(self.statistics)
            mine = self._ranks.scatter(shares(trajectories, self._ranks.size) if self._is_first else None)
        return mine


def _addresses() -> list[str]:
    text = os.environ.get(names.SERVER_ADDRS, "")
    addresses = [address.strip() for address in text.split(",") if address.strip()]
    if not addresses:
        raise ValueError(f"{names.SERVER_ADDRS} is {text!r}; set it to the servers' host:port,host:port")
    return addresses


def _api_key() -> str | None:
    path = os.environ.get(names.API_KEY_FILE)
    return Path(path).read_text().strip() if path else None
