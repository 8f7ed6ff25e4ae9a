"""The operator as a whole: watches, workers that hold the Lease, resync, and the HTTP service."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import kopf
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from areal_api.errors import describe
from areal_api.experiment import KIND
from areal_api.http_server import MAX_HEADER_BYTES, LimitedProtocol, listening_socket
from areal_operator.child_watch import ChildWatch
from areal_operator.cluster import CHILD_KINDS, ApiError, Cluster, is_transient
from areal_operator.experiments import Experiments, object_key
from areal_operator.handlers import WatchGuard, kopf_settings, make_registry
from areal_operator.leader import Leader
from areal_operator.manifests import pod_groups
from areal_operator.metrics import Metrics
from areal_operator.progress import ProgressReceiver, make_app
from areal_operator.queueing import kueue
from areal_operator.queueing.positions import Positions
from areal_operator.reconcile import Reconciler
from areal_operator.root_key import wait_for_root_key
from areal_operator.settings import Settings
from areal_operator.store import Key, Store
from areal_operator.warning_events import NamespaceWarnings
from areal_operator.work_queue import COALESCE_S, WorkQueue

logger = logging.getLogger(__name__)
WATCH_CHECK_S = 2.0
MAX_RECONCILE_S = 600.0  # a reconcile that takes longer has hung
MAX_LEASE_SILENCE_S = 60.0  # the Lease is requested every few seconds; without an attempt for longer the process hangs


class Operator:
    """One process of the operator."""

    def __init__(self, settings: Settings, cluster: Cluster, root_key: bytes) -> None:
        self._settings = settings
        self._cluster = cluster
        self._store = Store()
        self._queue: WorkQueue[Key] = WorkQueue()
        self._experiments = Experiments()
        self._metrics = Metrics()
        self._warnings = NamespaceWarnings(cluster, max_age_s=settings.waiting_s)
        self._positions = Positions(cluster)
        self._reconciler = Reconciler(
            cluster,
            self._store,
            self._experiments,
            self._warnings,
            settings=settings,
            root_key=root_key,
            positions=self._positions,
            refused=self._refused,
        )
        group_kinds = [pod_groups.APIS[api].kind for _, api in settings.gang_schedulers]
        self._child_watches = [
            ChildWatch(
                cluster,
                kind,
                namespace,
                store=self._store,
                changed=lambda key: self._queue.add(key, COALESCE_S),
                metrics=self._metrics,
                relist_s=settings.resync_s,
                optional=kind == pod_groups.APIS[pod_groups.KUBERNETES].kind,
            )
            for kind in (*CHILD_KINDS, *((kueue.WORKLOAD,) if settings.kueue else ()), *dict.fromkeys(group_kinds))
            for namespace in settings.watched or (None,)
        ]
        self._leader = Leader(cluster, namespace=settings.namespace, identity=settings.identity)
        self.synced = False  # whether the experiments were listed once
        self._unreadable: dict[str | None, str] = {}  # namespaces that cannot be listed, and why
        self._metrics.add_gauges(
            queue_depth=lambda: self._queue.depth,
            leads=self._leader.leads.is_set,
            experiments=self._experiments.statuses,
        )

    async def run(self, stop: asyncio.Event, watching: asyncio.Event) -> None:
        """Run until ``stop`` is set; raises if a part ends by itself. Sets ``watching`` once kopf has started."""
        server = _Service(self._uvicorn_config())
        watched = self._settings.watched
        kopf_stop = asyncio.Event()
        parts = {
            "watches": kopf.operator(
                registry=make_registry(self._experiments, self._queue, self._metrics),
                settings=kopf_settings(),
                standalone=True,
                clusterwide=not watched,
                namespaces=watched,
                ready_flag=watching,
                stop_flag=kopf_stop,
            ),
            "leader": self._leader.run(),
            "resync": self._resync_forever(),
            "children": self._watch_children(),
            "warnings": self._poll("warning events", self._warnings.changed),
            "positions": self._poll("positions in queues", self._positions.changed),
            "workers": self._work(),
            "guard": self._guard(),
            "service": server.serve(sockets=[listening_socket(self._settings.port)]),
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
            if error is not None or task is not tasks[0]:  # kopf exits without an error after a signal
                raise RuntimeError(f"the operator's {task.get_name()} ended") from error

    async def resync(self) -> None:
        """List the experiments again, to find what their watches missed.

        A namespace that cannot be listed is logged once and does not hold up the others.
        """
        for namespace in self._settings.watched or (None,):
            try:
                await self._resync_namespace(namespace)
            except ApiError as error:
                if is_transient(error):
                    raise
                self._mark_unreadable(namespace, describe(error))
            else:
                if self._unreadable.pop(namespace, None) is not None:
                    logger.info("namespace %s can be read again", namespace)
        self.synced = True

    async def _resync_namespace(self, namespace: str | None) -> None:
        known: set[Key] = set()
        async for page in self._cluster.pages(KIND, namespace):
            for body in page.items:
                known.add(object_key(body))
                if self._experiments.put(body):
                    self._queue.add(object_key(body))
        for key in [key for key in self._experiments.known() if namespace in (None, key[0])]:
            if key not in known:
                self._experiments.remove(key)
                self._queue.add(key)

    def _mark_unreadable(self, namespace: str | None, why: str) -> None:
        if self._unreadable.get(namespace) != why:
            where = "the cluster" if namespace is None else f"namespace {namespace}"
            logger.error("%s cannot be read, its experiments are not managed: %s", where, why)
        self._unreadable[namespace] = why

    async def _resync_forever(self) -> None:
        while True:
            try:
                await self.resync()
                wait_s = self._settings.resync_s
            except Exception as error:
                if not isinstance(error, ApiError) and not is_transient(error):
                    raise
                logger.warning("the resync failed and is repeated: %s", describe(error))
                wait_s = 2.0
            await asyncio.sleep(wait_s)

    async def _watch_children(self) -> None:
        async with asyncio.TaskGroup() as group:
            for watch in self._child_watches:
                group.create_task(watch.run())

    async def _poll(self, what: str, changed: Callable[[], Awaitable[list[Key]]]) -> None:
        """Reconcile the experiments for which something has changed that is not watched."""
        while True:
            await asyncio.sleep(self._settings.waiting_s)
            try:
                for key in await changed():
                    self._queue.add(key)
            except Exception as error:
                if not isinstance(error, ApiError) and not is_transient(error):
                    raise
                logger.warning("%s cannot be read: %s", what, describe(error))

    @property
    def ready(self) -> bool:
        """Whether experiments and children were listed once."""
        return self.synced and all(watch.listed.is_set() for watch in self._child_watches)

    def _refused(self, kind: str, namespace: str) -> str | None:
        """Why children of a kind in a namespace cannot be read; None if they can."""
        watches = [watch for watch in self._child_watches if watch.reads(kind, namespace)]
        return watches[0].refused if watches else None

    async def _guard(self) -> None:
        """End the process when a watch has ended, except in namespaces that cannot be read at all."""
        guard = WatchGuard(self._settings.watched)
        while True:
            await asyncio.sleep(WATCH_CHECK_S)
            for namespace, plurals in guard.dead().items():
                if await self._is_readable(namespace):
                    where = "" if namespace is None else f" in namespace {namespace}"
                    text = f"the watch of {', '.join(plurals)}{where} has ended or did not start"
                    raise RuntimeError(f"{text}; is the custom resource definition installed?")

    async def _is_readable(self, namespace: str | None) -> bool:
        """Whether a restart would bring back the watches of a namespace (None: of the whole cluster, always)."""
        if namespace is None:
            return True
        if namespace in self._unreadable:  # the next resync finds out when it is readable again
            return False
        try:
            await self._resync_namespace(namespace)
        except Exception as error:
            if not isinstance(error, ApiError) and not is_transient(error):
                raise
            self._mark_unreadable(namespace, describe(error))
            return False
        return True

    async def _work(self) -> None:
        while True:
            async with self._leader.leading():
                while not self.ready:
                    await asyncio.sleep(0.05)
                await self._list_as_leader()
                async with asyncio.TaskGroup() as group:
                    for _ in range(self._settings.workers):
                        group.create_task(self._worker())

    async def _list_as_leader(self) -> None:
        """Read what an earlier leader has written, and reconcile every experiment once."""
        while True:
            try:
                await self.resync()
                break
            except Exception as error:
                if not isinstance(error, ApiError) and not is_transient(error):
                    raise
                logger.warning("the experiments cannot be listed: %s", describe(error))
                await asyncio.sleep(2.0)
        for key in self._experiments.known():
            self._queue.add(key)

    async def _worker(self) -> None:
        while True:
            key = await self._queue.get()
            started_at = time.monotonic()
            try:
                after_s = await self._reconciler.reconcile(key)
            except asyncio.CancelledError:
                self._queue.add(key)
                raise
            except Exception as error:
                delay_s = self._queue.fail(key)
                self._metrics.reconciles.labels("error").inc()
                expected = isinstance(error, ApiError) or is_transient(error)
                text = f"{describe(error)}; retrying in {delay_s:.0f} s"
                logger.error("%s/%s: %s", *key, text, exc_info=not expected)
            else:
                self._queue.succeed(key)
                self._metrics.reconciles.labels("success").inc()
                if after_s is not None:
                    self._queue.add(key, after_s)
            finally:
                self._metrics.seconds.observe(time.monotonic() - started_at)
                self._queue.done(key)

    async def _step_down(self) -> None:
        try:
            await asyncio.wait_for(self._leader.release(), 5.0)
        except (ApiError, OSError, TimeoutError) as error:
            logger.warning("the Lease could not be released: %s", describe(error))

    def _uvicorn_config(self) -> uvicorn.Config:
        app = make_app(ProgressReceiver(self._cluster))

        async def metrics(_: Request) -> Response:
            return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

        async def healthz(_: Request) -> Response:
            problem = self._problem()
            return Response(problem or "ok", status_code=503 if problem else 200, media_type="text/plain")

        async def readyz(_: Request) -> Response:
            return Response("ok" if self.ready else "the first listing is not complete", 200 if self.ready else 503)

        for endpoint in (metrics, healthz, readyz):
            app.add_route(f"/{endpoint.__name__}", endpoint)

        return uvicorn.Config(
            app,
            http=LimitedProtocol,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            log_level="warning",
            lifespan="on",
            access_log=False,
        )

    def _problem(self) -> str | None:
        if time.monotonic() - self._leader.last_attempt_at > MAX_LEASE_SILENCE_S:
            return "the Lease has not been requested for a minute: the process hangs"
        if self._queue.longest_busy_s() > MAX_RECONCILE_S:
            return "a reconcile does not end"
        return None


class _Service(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals end the operator as a whole


async def run_operator(settings: Settings, stop: asyncio.Event, watching: asyncio.Event) -> None:
    """Run an operator until ``stop`` is set; sets ``watching`` once it receives events."""
    async with Cluster() as cluster:
        key = await wait_for_root_key(cluster, settings.namespace)
        await Operator(settings, cluster, key).run(stop, watching)
