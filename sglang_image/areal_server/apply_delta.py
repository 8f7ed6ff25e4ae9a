"""Brings a file of published weights from one version to the next by ``areal_trainer.weights.delta``.

The result is proven by the caller with the checksum of the whole file; here only what could exhaust memory or leave the
file is refused.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

MAX_HEADER_BYTES = 64 << 20
MAX_BLOCK = 16 << 20  # elements
WIDTHS = (1, 2, 4, 8)


def apply_delta(delta: Path, file: Path) -> None:
    """Change ``file`` in place. Raises ``ValueError`` for a delta that is damaged or of another file."""
    with delta.open("rb") as stream:
        header = _header(stream)
        if header.get("size") != file.stat().st_size:
            raise ValueError(f"{delta.name} is of a file of {header.get('size')} bytes, not of {file.stat().st_size}")
        content = np.memmap(file, np.uint8, mode="r+")
        for block in header["blocks"]:
            at, differences = _changes(stream, delta, *_checked(block, delta, len(content)))
            start, width, count = block["start"], block["width"], block["count"]
            elements = content[start : start + width * count].view(differences.dtype)
            elements[at] += differences
        content.flush()


def _changes(
    stream: BinaryIO, delta: Path, width: int, count: int, changed: int, lengths: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Positions of a block's changed elements, and what is added to them."""
    distances = _numbers(stream, delta, lengths[0], changed, np.dtype("<u4"))
    differences = _numbers(stream, delta, lengths[1], changed, np.dtype(f"<u{width}"))
    at = np.cumsum(distances, dtype=np.int64) - 1
    if not distances.all() or at[-1] >= count:
        raise ValueError(f"{delta.name} changes elements outside of a tensor")
    return at, differences


def _numbers(stream: BinaryIO, delta: Path, length: int, count: int, kind: np.dtype[Any]) -> NDArray[Any]:
    size = count * kind.itemsize
    try:
        planes = zlib.decompressobj().decompress(stream.read(length), size)
    except zlib.error as error:
        raise ValueError(f"{delta.name} cannot be decompressed: {error}") from error
    if len(planes) != size:
        raise ValueError(f"{delta.name} has {len(planes)} of the {size} bytes of a block")
    return np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(kind.itemsize, count).T).view(kind).reshape(-1)


def _header(stream: BinaryIO) -> dict[str, Any]:
    length = int.from_bytes(stream.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a delta has a header of {length} bytes")
    try:
        header = json.loads(stream.read(length))
        if isinstance(header, dict) and isinstance(header["blocks"], list):
            return header
    except (ValueError, KeyError, RecursionError) as error:
        raise ValueError(f"a delta has no header: {error}") from error
    raise ValueError("a delta has no header")


def _checked(block: Any, delta: Path, size: int) -> tuple[int, int, int, tuple[int, int]]:
    """Width, elements, changed elements, and lengths of the streams of a block."""
    try:
        start, width, count, changed = (int(block[key]) for key in ("start", "width", "count", "changed"))
        first, second = map(int, block["bytes"])
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{delta.name} has a damaged block: {error}") from error
    inside = start >= 0 and 0 < changed <= count <= MAX_BLOCK and width in WIDTHS and start + width * count <= size
    if not inside or min(first, second) < 0 or first + second > delta.stat().st_size:
        raise ValueError(f"{delta.name} has a block outside of the file")
    return width, count, changed, (first, second)
