"""``torchrun … loading_memory.py MODEL OUT`` loads a model on all ranks; each writes its peak of anonymous memory.

The peak is the growth in bytes while the policy is built. Pages of the files are not anonymous: they belong to the page
cache.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from areal_trainer.model.policy import LogprobModel
from areal_trainer.ranks import joined
from support.tiny_policy import actor_config

INTERVAL_S = 0.002


def anonymous() -> int:
    """Resident anonymous memory of this process, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) << 10


class Peak:
    """The largest value of ``anonymous`` while it is entered."""

    def __enter__(self) -> Peak:
        self.bytes = anonymous()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL_S):
            self.bytes = max(self.bytes, anonymous())


def load(model: Path) -> int:
    config = actor_config(model, attn_impl="eager")
    # Builds and frees a tiny model first, to load libraries.
    LogprobModel(actor_config(model / "tiny", attn_impl="eager"), section="actor", device="cpu", temperature=1.0)
    before = anonymous()
    with Peak() as peak:
        LogprobModel(config, section="actor", device="cpu", temperature=1.0)
    return peak.bytes - before


if __name__ == "__main__":
    with joined("cpu") as ranks:
        grown = load(Path(sys.argv[1]))
        (Path(sys.argv[2]) / str(ranks.rank)).write_text(str(grown))
