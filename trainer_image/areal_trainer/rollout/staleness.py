"""Bounds how many episodes may start, so that no sample exceeds the staleness bound η when it is trained on.

An episode starts at version v only while accepted + running < (η + v + 1) · batch_size. So for every v, all episodes
started at v or before fit into the batches up to step v + η, the last that may train on them, so consuming oldest first
keeps every sample within η. The executor may take a newer episode first only if every remaining one still meets its
bound.
"""

from __future__ import annotations


class StalenessGate:
    """Counts episodes and computes how many more may start. η is ``max_staleness``; 0 is the synchronous algorithm."""

    def __init__(self, *, batch_size: int, max_staleness: int, max_concurrent: int, version: int = 0) -> None:
        if batch_size < 1:
            raise ValueError(f"consumer_batch_size is {batch_size}; set it to at least 1")
        if max_staleness < 0:
            raise ValueError(f"max_head_offpolicyness is {max_staleness}; set it to 0 (synchronous) or more")
        self.batch_size = batch_size
        self.max_staleness = max_staleness
        self.max_concurrent = max_concurrent
        self.running = 0
        self.accepted = 0
        self.version = 0
        self.resume(version)

    def resume(self, version: int) -> None:
        """Start at weight version ``version`` with nothing running; the episodes of earlier steps count as accepted."""
        assert self.running == 0, f"{self.running} episodes are running while the gate is reset to version {version}"
        self.version = version
        self.accepted = version * self.batch_size

    def set_version(self, version: int) -> None:
        """The servers now hold ``version``."""
        self.version = version

    def capacity(self) -> int:
        """Episodes that may start now; none if 0 or less."""
        return min(max(1, self.max_concurrent) - self.running, self.fresh_capacity())

    def fresh_capacity(self) -> int:
        """Episodes that the staleness bound alone allows to start."""
        return (self.max_staleness + self.version + 1) * self.batch_size - (self.accepted + self.running)

    def started(self) -> None:
        """Count an episode that starts."""
        self.running += 1

    def finished(self, *, accepted: bool) -> None:
        """Count an episode that ends. A rejected or failed one makes room for another."""
        assert self.running > 0, "an episode ended that had not started"
        self.running -= 1
        self.accepted += accepted
