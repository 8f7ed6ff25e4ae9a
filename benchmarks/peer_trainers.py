"""The trainers that this one is compared with, by name. Each raises ``PeerError`` if it cannot be installed or run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks import areal_peer, trl_peer
from benchmarks.learning_results import Record
from benchmarks.peer import PeerTask

PEER_TRAINERS: dict[str, Callable[[PeerTask, Path], Record]] = {"trl": trl_peer.train, "areal": areal_peer.train}
