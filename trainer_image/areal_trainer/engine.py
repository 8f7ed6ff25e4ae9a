"""The rollout engine: AReaL's interface, collective over the trainer's ranks.

Rank 0 holds a ``RolloutSession`` that does all the work; the other ranks take part in the collective calls only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

from areal_api import names
from areal_api.config import RolloutConfig
from areal_api.generation import GenerationHyperparameters
from areal_api.time_limits import TimeLimits
from areal_trainer.rollout.episode import Accept, Episode, Interrupted, Prompt, RolloutError
from areal_trainer.rollout.executor import Executor
from areal_trainer.rollout.pacing import Pacer
from areal_trainer.rollout.rank_channel import RankChannel, split_by_tokens
from areal_trainer.rollout.session import RolloutSession
from areal_trainer.rollout.staleness import StalenessGate
from areal_trainer.rollout.workflow import RolloutWorkflow
from areal_trainer.routing import Routing
from areal_trainer.servers.addresses import ServerAddresses
from areal_trainer.servers.control import ServerTimings
from areal_trainer.servers.fleet import ServerStatus, Target
from areal_trainer.servers.generation import ModelRequest, ModelResponse
from areal_trainer.trajectory import Trajectory
from areal_trainer.weights.disk import WeightUpdate

__all__ = ["ModelRequest", "ModelResponse", "RemoteSGLangEngine"]

Rows = list[dict[str, Any]]


class RemoteSGLangEngine:
    """Generates on remote SGLang servers and turns rows of data into batches of trajectories.

    ``initialize``, ``destroy``, ``prepare_batch`` and ``rollout_batch`` are collective. Every rank may call the methods
    about weights, ``pause``, ``resume`` and ``interrupt``: rank 0 acts on them, and the others track the version. All
    other methods are for rank 0.
    """

    def __init__(
        self,
        config: RolloutConfig,
        *,
        batch_size: int | None = None,
        max_staleness: int | None = None,
        total_batches: int | None = None,
        timings: ServerTimings | None = None,
        paced: bool = True,
    ) -> None:
        """``batch_size`` (episodes per step) and ``max_staleness`` default to ``config``.

        ``total_batches``: nothing is generated for later steps. ``timings``: intervals and timeouts in dealing with the
        servers. ``paced``: keep samples as fresh as possible within ``max_staleness``, rather than as many as it allows
        ahead.
        """
        size = batch_size or config.consumer_batch_size
        if size is None:
            raise ValueError(
                "rollout.consumer_batch_size is null; set it, or pass batch_size (GRPOConfig.consumer_batch_size)"
            )
        gate = StalenessGate(
            batch_size=size,
            max_staleness=config.max_head_offpolicyness if max_staleness is None else max_staleness,
            max_concurrent=config.max_concurrent_rollouts or size,
        )
        self._config = config
        self._batch_size = size
        self._executor = Executor(
            self,
            gate,
            max_failed=config.max_failed_episodes,
            max_rejected_batches=config.max_rejected_batches,
            queue_size=config.queue_size,
            total_batches=total_batches,
            max_rejected_kept=size if config.dump_to_file else 0,
            pacer=Pacer(batch_size=size, max_staleness=gate.max_staleness) if paced else None,
        )
        self._timings = timings or ServerTimings()
        self._channel: RankChannel | None = None  # from initialize to destroy
        self._session: RolloutSession | None = None  # the same, on rank 0
        self._version = 0
        self._unconsumed_rows: Rows = []  # of a resumed run
        self._loader: Iterable[Rows] | None = None
        self._rows: Iterator[Rows] = iter(())
        self.statistics: dict[str, float] = {}  # of the last batch, on every rank

    def initialize(
        self,
        addrs: list[str] | None = None,
        *,
        vocab_size: int | None = None,
        weights: WeightUpdate | None = None,
        routing: Routing | None = None,
    ) -> None:
        """Collective. Connect to the servers at ``addrs`` (host:port; default from the environment).

        Returns when every server was probed once and one holds ``weights``, those the run starts or resumes with; by
        default the servers' own, as version 0. ``routing``: samples have the experts of their tokens
        (``Policy.routing``). Raises ``NoServerError`` after ``rollout.setup_timeout``.
        """
        self._channel = RankChannel()
        self._version = weights.version if weights else 0
        if self._channel.rank != 0:
            return
        self._session = RolloutSession(
            self,
            self._config,
            TimeLimits.of(self._config, _device()),
            self._executor,
            addresses=ServerAddresses.from_environment() if addrs is None else ServerAddresses(tuple(addrs)),
            target=Target(weights.version, weights.path) if weights else Target(),
            vocab_size=vocab_size,
            api_key=api_key(),
            timings=self._timings,
            weights_url=os.environ.get(names.WEIGHTS_URL),
            routing=routing,
        )
        try:
            self._session.start()
        except BaseException:
            self.destroy()
            raise

    def destroy(self) -> None:
        """Cancel all episodes and close all connections; the servers keep running. Does nothing the second time."""
        if self._session is not None:
            self._version = self._session.version
            self._session.close()
            self._session = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    # Generation, for workflows

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        """One completion."""
        return (await self.agenerate_n(request, 1))[0]

    async def agenerate_n(self, request: ModelRequest, n: int) -> list[ModelResponse]:
        """``n`` completions of one prompt, from one server; see ``Sampler.sample`` for the errors."""
        return await self._first.sample(request, n)

    async def apost(self, path: str, body: dict[str, Any]) -> Any:
        """The response of any server to a request that does not depend on its weights; see ``Sampler.post``."""
        return await self._first.post(path, body)

    def warm_up(self, prompts: list[list[int]], gconfig: GenerationHyperparameters, *, n: int) -> None:
        """Sample each prompt ``n`` times concurrently and discard the results: triggers the servers' lazy
        initialization. Counts as no episode."""
        self._first.sample_all([ModelRequest(input_ids, gconfig) for input_ids in prompts], n)

    # Episodes

    def prepare_batch(
        self, dataloader: Iterable[Rows], workflow: RolloutWorkflow, accept: Accept | None = None
    ) -> list[Trajectory]:
        """Collective. The next batch of accepted episodes within the staleness bound; this rank's share of it.

        Reads the loaders of all ranks as far as the gate allows, epoch after epoch. With η = 0 this is synchronous.
        Episodes that ``accept`` refuses (DAPO) are replaced. Raises ``RolloutError``, ``NoServerError`` or
        ``WeightUpdateError`` (of a background update) rather than waiting for a batch that cannot complete.
        """
        started = time.perf_counter()
        session, channel = self._session, self._ranks
        if session is not None and self._unconsumed_rows:
            rows, self._unconsumed_rows = self._unconsumed_rows, []
            session.feed([Prompt(row, workflow, accept) for row in rows])
        while True:
            batch, error = _try_to_take(session, self._batch_size) if session is not None else (None, None)
            if self._agree(error, done=batch is not None):
                return self._deliver([t for episode in batch or () for t in episode.trajectories], started)
            gathered = channel.to_first(self._read(dataloader))
            if session is not None and gathered is not None:
                session.feed([Prompt(row, workflow, accept) for rows in gathered for row in rows])

    def rollout_batch(self, data: Rows, workflow: RolloutWorkflow, accept: Accept | None = None) -> list[Trajectory]:
        """Collective. One episode for each row of all ranks, started now; this rank's share, in the order of the rows.

        Rejected and failed episodes are left out. Counts as the batch of this step.
        """
        started = time.perf_counter()
        gathered = self._ranks.to_first(data)
        trajectories: list[Trajectory] = []
        failure: Exception | None = None
        if gathered is not None:
            rows = [row for part in gathered for row in part]
            try:
                trajectories = [t for part in self.run_episodes(rows, workflow, accept) for t in part]
                self._first.count_ungated(self._batch_size)
            except Exception as error:  # noqa: BLE001  _agree raises it on every rank
                failure = error
        self._agree(failure, done=True)
        return self._deliver(trajectories, started)

    def run_episodes(
        self, data: Rows, workflow: RolloutWorkflow, accept: Accept | None = None
    ) -> list[list[Trajectory]]:
        """One episode per row, outside the staleness gate (for evaluation), in the order of the rows.

        A rejected or failed episode is an empty list. Raises ``RolloutError`` after more than
        ``rollout.max_failed_episodes`` failures in a row, and ``Interrupted`` after ``interrupt``.
        """
        return self._first.run_episodes([Prompt(row, workflow, accept) for row in data])

    def submit(self, data: dict[str, Any], workflow: RolloutWorkflow, accept: Accept | None = None) -> None:
        """Queue one row; its episode starts when the gate allows."""
        self._first.feed([Prompt(data, workflow, accept)])

    def wait(self, count: int, timeout: float | None = None) -> list[Trajectory]:
        """Trajectories of the next ``count`` accepted episodes; ``TimeoutError`` after ``timeout`` seconds."""
        started = time.perf_counter()
        episodes = self._first.take(count, feeding=False, timeout_s=timeout)
        assert episodes is not None
        trajectories = [t for episode in episodes for t in episode.trajectories]
        self.statistics = self._first.record_batch(trajectories, started=started)
        return trajectories

    def take_rejected(self) -> list[Trajectory]:
        """Samples of rejected episodes since the last call, if ``rollout.dump_to_file``; empty on other ranks.

        Those of the first batch's worth of episodes only.
        """
        return self._session.take_rejected() if self._session is not None else []

    def interrupt(self) -> None:
        """End the run: weight updates wait for no server, and ``prepare_batch`` raises ``Interrupted`` on every rank.

        So does ``run_episodes``, on rank 0. Safe in a signal handler.
        """
        if self._session is not None:
            self._session.interrupt()

    def pause(self) -> None:
        """Start no more episodes until ``resume``; running ones continue."""
        if self._session is not None:
            self._session.pause()

    def resume(self) -> None:
        """Start episodes again."""
        if self._session is not None:
            self._session.resume()

    # Weights

    def update_weights(self, update: WeightUpdate) -> None:
        """Bring the current servers to ``update`` and return when they hold it.

        A server that fails loads ``update.path`` later. Raises ``WeightUpdateError`` if no server took the update;
        ``BroadcastError`` if a broadcast failed and there is no path, after which one may be published.
        """
        if self._session is not None:
            self._session.update_weights(update)
        else:
            self._version = update.version

    def update_weights_async(self, update: WeightUpdate) -> Future[None]:
        """The same in the background. Until it is done, episodes start under the old version.

        If it fails with anything but a ``BroadcastError``, the next ``prepare_batch`` raises its error too.
        """
        return self._first.update_weights_async(update)

    def get_version(self) -> int:
        """Weight version that the current servers hold."""
        return self._session.version if self._session is not None else self._version

    def set_version(self, version: int) -> None:
        """Declare that the servers already hold ``version``; those that report another one get no requests."""
        if self._session is not None:
            self._session.set_version(version)
        else:
            self._version = version

    def servers(self) -> list[ServerStatus]:
        """A snapshot of every server's state."""
        return self._first.servers()

    def current_servers(self) -> list[str]:
        """Addresses of the servers that get requests now."""
        return [server.address for server in self.servers() if server.ready]

    def servers_behind(self) -> bool:
        """Whether a server missed a broadcast: the next weights should be written to disk too."""
        return any(server.state == "behind" for server in self.servers())

    # Recovery

    def state_dict(self) -> dict[str, Any]:
        """Rows that were read but are in no batch yet, and counters; see ``Executor.state_dict``."""
        state = self._first.state_dict()
        return {**state, "rows": state["rows"] + self._unconsumed_rows}

    def load_state_dict(self, state: dict[str, Any], *, total_batches: int | None = None) -> None:
        """Resume once the servers hold the resumed weights: the next batches begin with ``state``'s rows.

        ``total_batches`` replaces the constructor's: it counts versions, and a rollback skips some.
        """
        self._unconsumed_rows = self._first.load_state_dict(state, total_batches=total_batches)

    def discard_episodes(self) -> None:
        """On every rank: cancel all episodes and drop every row that was read, before an earlier state is loaded.

        The next batch reads the loader from its own position.
        """
        self._unconsumed_rows = []
        self._loader, self._rows = None, iter(())
        if self._session is not None:
            self._session.discard_episodes()

    # Internals

    @property
    def _ranks(self) -> RankChannel:
        if self._channel is None:
            raise RuntimeError("the engine is not initialized; call initialize() first")
        return self._channel

    @property
    def _first(self) -> RolloutSession:
        """The session, which rank 0 has."""
        if self._session is None:
            raise RuntimeError(
                "the engine is not initialized, or this is not rank 0; call initialize() first, and this only on rank 0"
            )
        return self._session

    def _agree(self, error: Exception | None, *, done: bool) -> bool:
        """Rank 0's ``done``, on every rank; rank 0's error is raised on every rank."""
        message = None if error is None else f"{type(error).__name__}: {error}"
        done, remote_error = self._ranks.from_first((done, message))
        if error is not None:
            raise error
        if remote_error is not None and remote_error.startswith(Interrupted.__name__):
            raise Interrupted
        if remote_error is not None:
            raise RolloutError(f"on rank 0: {remote_error}")
        return done

    def _read(self, loader: Iterable[Rows]) -> Rows:
        """The next batch of this rank's loader, which restarts at its end."""
        if self._loader is not loader:
            self._loader, self._rows = loader, iter(loader)
        rows = next(self._rows, None)
        if rows is None:
            self._rows = iter(loader)
            rows = next(self._rows, None)
        if rows is None:
            raise ValueError("the data loader yields no rows; train_dataset is smaller than a batch, or empty")
        return list(rows)

    def _deliver(self, trajectories: list[Trajectory], started: float) -> list[Trajectory]:
        """Record a batch that has left the executor, and split it between the ranks."""
        channel, session = self._ranks, self._session
        if session is not None:
            self.statistics = session.record_batch(trajectories, started=started)
        if channel.size == 1:
            return trajectories
        self.statistics = channel.from_first(self.statistics)
        parts = split_by_tokens(trajectories, channel.shares) if session is not None else None
        share: list[Trajectory] = channel.scatter(parts)
        return share


def _try_to_take(session: RolloutSession, count: int) -> tuple[list[Episode] | None, Exception | None]:
    """The next batch, or None if the loaders must be read first; or the error."""
    try:
        return session.take(count, feeding=True), None
    except Exception as error:  # noqa: BLE001  _agree raises it on every rank
        return None, error


def _device() -> Literal["cuda", "cpu"]:
    return "cpu" if os.environ.get(names.DEVICE) == "cpu" else "cuda"


def api_key() -> str | None:
    """The run's API key; None without one."""
    path = os.environ.get(names.API_KEY_FILE)
    return Path(path).read_text().strip() if path else None
