"""How many episodes may start, so that no sample is older than allowed when it is trained on.

An episode starts at version v only while accepted + running < (η + v + 1) · batch_size. So for every v, those that
were started at v or before fit into the batches up to step v + η, the last that may train on them: consumed oldest
first, none is too old. The executor lets a younger one go first only where those that are left still fit.
"""

from __future__ import annotations


class StalenessGate:
    """Counts episodes and says how many more may start; η is ``max_staleness``, 0 the synchronous algorithm."""

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
        """Start at weight version ``version`` with nothing running: all that its steps consumed counts as accepted."""
        assert self.running == 0, f"{self.running} episodes run while the gate is set to version {version}"
        self.version = version
        self.accepted = version * self.batch_size

    def set_version(self, version: int) -> None:
        """The servers hold ``version`` from now on."""
        self.version = version

    def capacity(self) -> int:
        """Episodes that may start now; 0 or less is none."""
        return min(max(1, self.max_concurrent) - self.running, self.fresh_capacity())

    def fresh_capacity(self) -> int:
        """The part of the capacity that is due to staleness alone."""
        return (self.max_staleness + self.version + 1) * self.batch_size - (self.accepted + self.running)

    def started(self) -> None:
        """An episode starts."""
        self.running += 1

    def finished(self, *, accepted: bool) -> None:
        """An episode ends. One that is rejected, or failed, makes room for another."""
        assert self.running > 0, "an episode ended that never started"
        self.running -= 1
        self.accepted += accepted
