"""Leader election with a Lease: of several operators, only its holder reconciles."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from areal_api import resource_names
from areal_api.errors import describe
from areal_operator.cluster import ApiError, Cluster, is_transient

logger = logging.getLogger(__name__)
NAME = resource_names.OPERATOR
LEASE_DURATION_S = 15  # others may take the Lease this long after its last renewal
RETRY_PERIOD_S = 5.0
RENEW_DEADLINE_S = 10.0  # the holder stops this long after its last renewal, before another may start


class Leader:
    """Competes for the Lease. Whether another holder is dead is decided by our own clock, never by its timestamps."""

    def __init__(self, cluster: Cluster, *, namespace: str, identity: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._identity = identity
        self._seen: tuple[str, str] = ("", "")  # holder and renewal time that were read last
        self._seen_at = 0.0
        self._renewed_at = float("-inf")
        self.last_attempt_at = time.monotonic()
        self.leads = asyncio.Event()
        self.lost = asyncio.Event()

    async def run(self) -> None:
        """Acquire and renew until cancelled; exactly one of ``leads`` and ``lost`` is set."""
        self.lost.set()
        while True:
            began = time.monotonic()
            try:
                held = await asyncio.wait_for(self._try_acquire(), RETRY_PERIOD_S)
            except Exception as error:
                if not isinstance(error, ApiError) and not is_transient(error):
                    raise
                logger.warning("the Lease cannot be renewed: %s", describe(error))
                held = False
            self.last_attempt_at = time.monotonic()
            if held:
                self._renewed_at = began
            self._set_leading(self.last_attempt_at - self._renewed_at < RENEW_DEADLINE_S)
            await asyncio.sleep(RETRY_PERIOD_S if held else 2.0)

    async def release(self) -> None:
        """Release the Lease, so that another operator need not wait until it expires."""
        if not self.leads.is_set():
            return
        self._set_leading(False)
        lease = await self._cluster.get("Lease", self._namespace, NAME)
        if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
            lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
            await self._cluster.replace(lease)

    @asynccontextmanager
    async def leading(self) -> AsyncIterator[None]:
        """Wait for the Lease; cancel the body when it is lost."""
        await self.leads.wait()
        body = asyncio.current_task()
        assert body is not None
        cancelled_by_us = False

        async def watch() -> None:
            nonlocal cancelled_by_us
            await self.lost.wait()
            cancelled_by_us = True
            body.cancel()

        watcher = asyncio.create_task(watch())
        try:
            yield
        except asyncio.CancelledError:
            if not cancelled_by_us:
                raise
            body.uncancel()
            logger.info("the Lease was released or lost: another operator may reconcile now")
        finally:
            watcher.cancel()

    async def _try_acquire(self) -> bool:
        lease = await self._cluster.get("Lease", self._namespace, NAME)
        try:
            if lease is None:
                metadata = {"name": NAME, "namespace": self._namespace}
                new = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": {}}
                await self._cluster.create(self._claimed(new))
                return True
            if not self._may_take(lease["spec"]):
                return False
            await self._cluster.replace(self._claimed(lease))
            return True
        except ApiError as error:
            if error.status == 409:  # another operator was faster
                return False
            raise

    def _may_take(self, spec: dict[str, Any]) -> bool:
        holder, now = str(spec.get("holderIdentity") or ""), time.monotonic()
        if holder in ("", self._identity):
            return True
        seen = (holder, str(spec.get("renewTime")))
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        return now - self._seen_at > float(spec.get("leaseDurationSeconds") or LEASE_DURATION_S)

    def _claimed(self, lease: dict[str, Any]) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        spec = lease["spec"]
        taken = spec.get("holderIdentity") != self._identity
        changes = {"holderIdentity": self._identity, "leaseDurationSeconds": LEASE_DURATION_S, "renewTime": now}
        if taken:
            changes |= {"acquireTime": now, "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1}
        return {**lease, "kind": "Lease", "spec": {**spec, **changes}}

    def _set_leading(self, leads: bool) -> None:
        if leads and not self.leads.is_set():
            logger.info("this operator (%s) holds the Lease", self._identity)
        if leads:
            self.lost.clear()
            self.leads.set()
        else:
            self.leads.clear()
            self.lost.set()
