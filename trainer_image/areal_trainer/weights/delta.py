"""What changed between a file of a published version and the file of that name in the version before, losslessly.

A file ``<name>.delta`` is the length of a JSON header in eight bytes, the header, and for each block two streams: the
distances between changed elements, and the differences of the elements as integers. Numbers of several bytes are
stored byte plane after byte plane, then each stream is compressed with zlib: most planes are nearly constant. A block
is part of one tensor, which bounds the memory of both ends. ``areal_server.apply_delta`` is the other end.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SUFFIX = ".delta"
BLOCK = 4 << 20  # elements
LEVEL = 1  # zlib's fastest
_SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "U8": 1, "BOOL": 1}


def write_delta(base: Path, file: Path, delta: Path, *, limit: float) -> bool:
    """Write how the safetensors file ``file`` differs from ``base``; whether there is such a delta.

    There is none for files whose tensors differ in name, type or shape, and none above ``limit`` × the file's size.
    """
    size, head = file.stat().st_size, _head(file)
    if base.stat().st_size != size or _head(base) != head:
        return False
    old, new = (np.memmap(path, np.uint8, mode="r") for path in (base, file))
    blocks: list[dict[str, Any]] = []
    streams: list[bytes] = []
    written = 0
    for name, start, width, count in _blocks(head):
        parts = _changes(old, new, start, width, count)
        if parts is None:
            continue
        changed, *compressed = parts
        lengths = [len(stream) for stream in compressed]
        blocks.append(
            {"tensor": name, "start": start, "width": width, "count": count, "changed": changed, "bytes": lengths}
        )
        streams += compressed
        written += sum(lengths)
        if written > limit * size:
            return False
    header = json.dumps({"size": size, "blocks": blocks}, separators=(",", ":")).encode()
    with delta.open("wb") as output:
        output.write(len(header).to_bytes(8, "little") + header)
        output.writelines(streams)
    return True


def _changes(
    old: NDArray[np.uint8], new: NDArray[np.uint8], start: int, width: int, count: int
) -> tuple[int, bytes, bytes] | None:
    """Number of changed elements of a block and the two streams; None if there are none."""
    kind = np.dtype(f"<u{width}")
    before, after = (array[start : start + width * count].view(kind) for array in (old, new))
    at = np.flatnonzero(before != after)
    if not len(at):
        return None
    distances = np.diff(at, prepend=-1).astype("<u4")
    return len(at), _compressed(distances), _compressed(after[at] - before[at])


def _compressed(numbers: NDArray[Any]) -> bytes:
    planes = numbers.view(np.uint8).reshape(len(numbers), numbers.itemsize).T
    # Planes have runs but no repeated words, for which the default strategy searches in vain.
    compressor = zlib.compressobj(LEVEL, strategy=zlib.Z_RLE)
    return compressor.compress(planes.tobytes()) + compressor.flush()


def _blocks(head: bytes) -> Iterator[tuple[str, int, int, int]]:
    """Tensor, first byte in the file, bytes of an element, and elements of each block."""
    tensors = json.loads(head[8:])
    for name, entry in tensors.items():
        if name == "__metadata__":
            continue
        width = _SIZES[entry["dtype"]]
        start, end = (len(head) + offset for offset in entry["data_offsets"])
        for first in range(start, end, BLOCK * width):
            yield name, first, width, min(BLOCK, (end - first) // width)


def _head(file: Path) -> bytes:
    """The first bytes of a safetensors file, up to the tensors."""
    with file.open("rb") as stream:
        length = stream.read(8)
        return length + stream.read(int.from_bytes(length, "little"))
