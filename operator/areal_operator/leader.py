"""One Lease: of several operators the one that holds it works."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from areal_api import resource_names
from areal_operator.cluster import ApiError, Cluster, is_transient

logger = logging.getLogger(__name__)
NAME = resource_names.OPERATOR
LEASE_S = 15  # after this long without a renewal others may take it
RENEW_S = 5.0
GIVE_UP_S = 10.0  # stops working this long after the last renewal: before another may begin


class Leader:
    """Competes for the Lease. Whether another holder is dead is judged by our clock, never by its timestamps."""

    def __init__(self, cluster: Cluster, *, namespace: str, identity: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._identity = identity
        self._seen: tuple[str, str] = ("", "")  # holder and time of renewal that were read last
        self._seen_at = 0.0
        self._renewed_at = float("-inf")
        self.tried_at = time.monotonic()
        self.leads = asyncio.Event()
        self.lost = asyncio.Event()

    async def run(self) -> None:
        """Acquire and renew until cancelled; ``leads`` and ``lost`` say which it is."""
        self.lost.set()
        while True:
            began = time.monotonic()
            try:
                held = await asyncio.wait_for(self._try(), RENEW_S)
            except (ApiError, TimeoutError, OSError) as error:
                logger.warning("the Lease cannot be renewed: %s", error or type(error).__name__)
                held = False
            except Exception as error:
                if not is_transient(error):
                    raise
                logger.warning("the Lease cannot be renewed: %s", error)
                held = False
            self.tried_at = time.monotonic()
            if held:
                self._renewed_at = began
            self._tell(self.tried_at - self._renewed_at < GIVE_UP_S)
            await asyncio.sleep(RENEW_S if held else 2.0)

    async def release(self) -> None:
        """Give the Lease up, so that another need not wait for its end."""
        if not self.leads.is_set():
            return
        self._tell(False)
        lease = await self._cluster.get("Lease", self._namespace, NAME)
        if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
            lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
            await self._cluster.replace(lease)

    @asynccontextmanager
    async def leading(self) -> AsyncIterator[None]:
        """Waits for the Lease; cancels the body when it is lost."""
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
            logger.info("the Lease is given up or lost: another operator may work now")
        finally:
            watcher.cancel()

    async def _try(self) -> bool:
        lease = await self._cluster.get("Lease", self._namespace, NAME)
        try:
            if lease is None:
                metadata = {"name": NAME, "namespace": self._namespace}
                made = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": {}}
                await self._cluster.create(self._claimed(made))
                return True
            if not self._may_take(lease["spec"]):
                return False
            await self._cluster.replace(self._claimed(lease))
            return True
        except ApiError as error:
            if error.status == 409:  # another was quicker
                return False
            raise

    def _may_take(self, spec: dict[str, Any]) -> bool:
        holder, now = str(spec.get("holderIdentity") or ""), time.monotonic()
        if holder in ("", self._identity):
            return True
        seen = (holder, str(spec.get("renewTime")))
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        return now - self._seen_at > float(spec.get("leaseDurationSeconds") or LEASE_S)

    def _claimed(self, lease: dict[str, Any]) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        spec = lease["spec"]
        taken = spec.get("holderIdentity") != self._identity
        changes = {"holderIdentity": self._identity, "leaseDurationSeconds": LEASE_S, "renewTime": now}
        if taken:
            changes |= {"acquireTime": now, "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1}
        return {**lease, "kind": "Lease", "spec": {**spec, **changes}}

    def _tell(self, leads: bool) -> None:
        if leads and not self.leads.is_set():
            logger.info("this operator (%s) holds the Lease", self._identity)
        if leads:
            self.lost.clear()
            self.leads.set()
        else:
            self.leads.clear()
            self.lost.set()
