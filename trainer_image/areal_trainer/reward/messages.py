"""What the trainer and a process of the reward pool say to each other: pickles behind their length.

Here and not in ``worker``, whose classes are those of ``__main__`` in the process that runs it.
"""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

from areal_trainer.reward.function import FunctionAddress

HEADER = struct.Struct("!I")  # bytes of the pickle that follows


@dataclass(frozen=True)
class Hello:
    """The first message to a worker."""

    address: FunctionAddress
    timeout_s: float


@dataclass(frozen=True)
class Ready:
    """The worker's first message: whether the function is there, and whether its calls run side by side."""

    problem: str | None
    concurrent: bool


@dataclass(frozen=True)
class Answer:
    """What came of a call."""

    call: int
    value: float = 0.0
    problem: str | None = None
    seconds: float = 0.0


def frame(message: Any) -> bytes:
    """``message`` as it goes over the socket."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(body)) + body


def receive(inbox: BinaryIO) -> Any:
    """The next message, None at the end."""
    try:
        header = inbox.read(HEADER.size)
    except ConnectionError:  # closed with answers unread
        return None
    if len(header) < HEADER.size:
        return None
    return pickle.loads(inbox.read(HEADER.unpack(header)[0]))
