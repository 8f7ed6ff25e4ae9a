"""Messages between the trainer and a reward process: length-prefixed pickles.

They are not defined in ``worker`` because that module is ``__main__`` in the reward process, which breaks pickling.
"""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

from areal_trainer.reward.function import FunctionReference

HEADER = struct.Struct("!I")  # size in bytes of the pickle that follows


@dataclass(frozen=True)
class WorkerSetup:
    """The first message to a worker."""

    function: FunctionReference
    timeout_s: float


@dataclass(frozen=True)
class WorkerReady:
    """The worker's first message: whether importing the function failed, and whether its calls run concurrently."""

    error: str | None
    concurrent: bool


@dataclass(frozen=True)
class CallResult:
    """The outcome of one call."""

    call: int
    value: float = 0.0
    error: str | None = None
    seconds: float = 0.0


def frame(message: Any) -> bytes:
    """Serialize ``message`` for the socket."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(body)) + body


def receive(inbox: BinaryIO) -> Any:
    """Read the next message; None at end of file."""
    try:
        header = inbox.read(HEADER.size)
    except ConnectionError:  # the peer closed the socket before reading all results
        return None
    if len(header) < HEADER.size:
        return None
    return pickle.loads(inbox.read(HEADER.unpack(header)[0]))
