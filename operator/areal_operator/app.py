"""The operator as a whole: watches, workers behind the Lease, resync, and the service that listens."""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

import kopf
import uvicorn
from fastapi import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from areal_api import resource_names
from areal_api.experiment import KIND
from areal_operator.cluster import CHILD_KINDS, ApiError, Cluster, is_transient
from areal_operator.handlers import Experiments, WatchGuard, kopf_settings, make_registry, object_key
from areal_operator.leader import Leader
from areal_operator.metrics import Metrics
from areal_operator.progress import ProgressReceiver, make_app
from areal_operator.reconcile import Reconciler
from areal_operator.settings import Settings
from areal_operator.store import Key, Store
from areal_operator.work_queue import WorkQueue

logger = logging.getLogger(__name__)
ROOT_KEY = "areal-operator-key"
GUARD_S = 2.0
STUCK_S = 600.0  # a reconcile that takes this long never ends
DEAF_S = 60.0  # the Lease is asked for every few seconds: longer without an answer, and the process is to be restarted


class Operator:
    """One process of the operator."""

    def __init__(self, settings: Settings, cluster: Cluster, root_key: bytes) -> None:
        self._settings = settings
        self._cluster = cluster
        self._store = Store()
        self._queue: WorkQueue[Key] = WorkQueue()
        self._experiments = Experiments()
        self._metrics = Metrics()
        self._reconciler = Reconciler(cluster, self._store, settings=settings, root_key=root_key)
        self._leader = Leader(cluster, namespace=settings.namespace, identity=settings.identity)
        self._synced = False
        self._metrics.watch(
            queue_depth=lambda: self._queue.depth,
            leads=self._leader.leads.is_set,
            experiments=lambda: self._experiments.bodies,
        )

    async def run(self, stop: asyncio.Event, watching: asyncio.Event) -> None:
        """Run until ``stop`` is set; raises where a part ended that must not. Sets ``watching`` once kopf is up."""
        server = _Service(self._uvicorn_config())
        watched = self._settings.watched
        kopf_stop = asyncio.Event()
        parts = {
            "watches": kopf.operator(
                registry=make_registry(self._store, self._experiments, self._queue, self._metrics),
                settings=kopf_settings(),
                standalone=True,
                clusterwide=not watched,
                namespaces=watched,
                ready_flag=watching,
                stop_flag=kopf_stop,
            ),
            "leader": self._leader.run(),
            "resync": self._resync_forever(),
            "workers": self._work(),
            "guard": self._guard(),
            "service": server.serve(),
        }
        tasks: list[asyncio.Task[object]] = [asyncio.create_task(part, name=name) for name, part in parts.items()]
        stopping = asyncio.create_task(stop.wait(), name="stop")
        done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
        kopf_stop.set()
        server.should_exit = True
        await self._step_down()
        for task in tasks[1:-1]:
            task.cancel()
        stopping.cancel()
        await asyncio.wait(tasks, timeout=10.0)
        for task in tasks:
            task.cancel()
        for task in done - {stopping}:
            error = task.exception()
            if (
                error is not None or task is not tasks[0]
            ):  # kopf ends well by a signal that came before ours were caught
                raise RuntimeError(f"the operator's {task.get_name()} ended") from error

    async def resync(self) -> None:
        """Read everything anew: what the watches missed comes to light, what they said twice is dropped."""
        for namespace in self._settings.watched or (None,):
            selector = f"{resource_names.MANAGED_BY}={resource_names.OPERATOR}"
            for kind in CHILD_KINDS:
                listed = await self._cluster.list(kind, namespace, selector)
                for key in self._store.replace(kind, listed.items, listed.version, namespace):
                    self._queue.add(key)
            listed = await self._cluster.list(KIND, namespace)
            for body in listed.items:
                self._experiments.put(body)
                self._queue.add(object_key(body))
            known = {object_key(body) for body in listed.items}
            for key in [key for key in self._experiments.bodies if namespace in (None, key[0])]:
                if key not in known:
                    self._experiments.remove(key)
        self._synced = True

    async def _resync_forever(self) -> None:
        while True:
            try:
                await self.resync()
                wait_s = self._settings.resync_s
            except Exception as error:
                if not isinstance(error, ApiError) and not is_transient(error):
                    raise
                logger.warning("the resync failed and is tried again: %s", error or type(error).__name__)
                wait_s = 2.0
            await asyncio.sleep(wait_s)

    async def _guard(self) -> None:
        guard = WatchGuard()
        while True:
            await asyncio.sleep(GUARD_S)
            problem = guard.problem()
            if problem is not None:
                raise RuntimeError(problem)

    async def _work(self) -> None:
        while True:
            async with self._leader.leading():
                while not self._synced:
                    await asyncio.sleep(0.05)
                for key in self._experiments.bodies:  # what another leader did meanwhile is looked at
                    self._queue.add(key)
                async with asyncio.TaskGroup() as group:
                    for _ in range(self._settings.workers):
                        group.create_task(self._worker())

    async def _worker(self) -> None:
        while True:
            key = await self._queue.get()
            began = time.monotonic()
            try:
                after_s = await self._reconciler.reconcile(key)
            except asyncio.CancelledError:
                self._queue.add(key)
                raise
            except Exception as error:
                delay_s = self._queue.fail(key)
                self._metrics.reconciles.labels("error").inc()
                known = isinstance(error, ApiError) or is_transient(error)
                text = f"{error or type(error).__name__}; it is tried again in {delay_s:.0f} s"
                logger.error("%s/%s: %s", *key, text, exc_info=not known)
            else:
                self._queue.succeed(key)
                self._metrics.reconciles.labels("success").inc()
                if after_s is not None:
                    self._queue.add(key, after_s)
            finally:
                self._metrics.seconds.observe(time.monotonic() - began)
                self._queue.done(key)

    async def _step_down(self) -> None:
        try:
            await asyncio.wait_for(self._leader.release(), 5.0)
        except (ApiError, OSError, TimeoutError) as error:
            logger.warning("the Lease could not be given up: %s", error or type(error).__name__)

    def _uvicorn_config(self) -> uvicorn.Config:
        app = make_app(ProgressReceiver(self._cluster))

        @app.get("/metrics")
        async def metrics() -> Response:
            return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

        @app.get("/healthz")
        async def healthz() -> Response:
            problem = self._problem()
            return Response(problem or "ok", status_code=503 if problem else 200, media_type="text/plain")

        @app.get("/readyz")
        async def readyz() -> Response:
            return Response("ok" if self._synced else "the first listing is not done", 200 if self._synced else 503)

        return uvicorn.Config(
            app, host="0.0.0.0", port=self._settings.port, log_level="warning", lifespan="on", access_log=False
        )

    def _problem(self) -> str | None:
        if time.monotonic() - self._leader.tried_at > DEAF_S:
            return "the Lease has not been asked for: the process hangs"
        if self._queue.longest_busy_s() > STUCK_S:
            return "a reconcile does not end"
        return None


class _Service(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are for the operator as a whole


async def operator_key(cluster: Cluster, namespace: str) -> bytes:
    """The secret from which the API keys of experiments are derived; made once."""
    while True:
        found = await cluster.get("Secret", namespace, ROOT_KEY)
        if found is not None:
            return base64.b64decode(found["data"]["key"])
        key = base64.b64encode(secrets.token_bytes(32)).decode()
        metadata = {"name": ROOT_KEY, "namespace": namespace}
        made = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "immutable": True, "data": {"key": key}}
        try:
            await cluster.create(made)
        except ApiError as error:
            if error.status != 409:  # another operator was quicker
                raise


async def operate(settings: Settings, stop: asyncio.Event, watching: asyncio.Event) -> None:
    """Run an operator until ``stop`` is set; sets ``watching`` once it hears of what changes."""
    async with Cluster() as cluster:
        key = await _patiently_key(cluster, settings.namespace)
        await Operator(settings, cluster, key).run(stop, watching)


async def _patiently_key(cluster: Cluster, namespace: str) -> bytes:
    deadline = time.monotonic() + 60.0
    while True:
        try:
            return await operator_key(cluster, namespace)
        except Exception as error:
            if not is_transient(error) or time.monotonic() > deadline:
                raise
            logger.warning("waiting for the API server: %s", error or type(error).__name__)
            await asyncio.sleep(1.0)
