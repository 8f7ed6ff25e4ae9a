"""A fast writer of safetensors files: each byte passes once through a buffer that fits in the CPU cache.

There it is converted, hashed and passed to the kernel, which writes it back while the next piece is prepared.

The format (https://huggingface.co/docs/safetensors) is the length of a JSON header in eight bytes, the header, and the
tensors' bytes.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch
import xxhash

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_PIECE_BYTES = 1 << 20  # fits in the L2 cache; a multiple of the page size and of every element size
_AHEAD_BYTES = 16 << 20  # start writing back after this many bytes
_PAGE_BYTES = 4096
_SYNC_FILE_RANGE_WRITE = 2  # from linux/fs.h: start writing back without waiting

_libc = ctypes.CDLL(None, use_errno=True)  # neither call is in Python; its posix_fallocate may write zeros
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def save_file(tensors: Mapping[str, torch.Tensor], file: Path, *, dtype: torch.dtype) -> str:
    """Write and fsync host tensors, floating-point ones as ``dtype``; return the file's xxh3_128."""
    types = {name: dtype if tensor.is_floating_point() else tensor.dtype for name, tensor in tensors.items()}
    # Wide types first, which aligns each tensor to its element size.
    names = sorted(tensors, key=lambda name: (-types[name].itemsize, name))
    digest = xxhash.xxh3_128()
    head = _head(tensors, names, types)
    size = len(head) + sum(tensors[name].numel() * types[name].itemsize for name in names)
    with file.open("wb", buffering=0) as stream:
        handle = stream.fileno()
        _reserve(handle, size, file)
        started = written = 0
        for piece in chain([memoryview(head)], _pieces([(tensors[name], types[name]) for name in names])):
            digest.update(piece)
            _write(handle, piece)
            written += len(piece)
            if written - started >= _AHEAD_BYTES:
                _start_writing_back(handle, started, written)
                started = written
        os.fsync(handle)
    return digest.hexdigest()


def _pieces(tensors: Sequence[tuple[torch.Tensor, torch.dtype]]) -> Iterator[memoryview]:
    """Yield the converted bytes of all tensors. A piece is valid until the next one is requested."""
    buffer = torch.empty(_PIECE_BYTES, dtype=torch.uint8)
    view = memoryview(buffer.numpy())
    filled = 0
    for tensor, dtype in tensors:
        flat = tensor.detach().reshape(-1)
        taken = 0
        while taken < len(flat):
            count = min((_PIECE_BYTES - filled) // dtype.itemsize, len(flat) - taken)
            end = filled + count * dtype.itemsize
            buffer[filled:end].view(dtype).copy_(flat[taken : taken + count])
            taken += count
            filled = end
            if filled == _PIECE_BYTES:
                yield view
                filled = 0
    yield view[:filled]


def _write(handle: int, data: memoryview) -> None:
    while data:
        data = data[os.write(handle, data) :]


def _reserve(handle: int, size: int, file: Path) -> None:
    """Allocate the whole file at once: faster than piecewise, and a full disk fails before any work."""
    try:
        _advise(lambda: _libc.fallocate(handle, 0, 0, size))
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}, for {size} bytes", str(file)) from error


def _start_writing_back(handle: int, start: int, end: int) -> None:
    _advise(lambda: _libc.sync_file_range(handle, start, end - start, _SYNC_FILE_RANGE_WRITE))


def _advise(call: Callable[[], int]) -> None:
    """Make an optional call; ignore that a file system does not support it."""
    while call() != 0:
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS):
            return
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def _head(tensors: Mapping[str, torch.Tensor], names: list[str], types: Mapping[str, torch.dtype]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in names:
        end = start + tensors[name].numel() * types[name].itemsize
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _NAMES[types[name]], "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _PAGE_BYTES)  # aligns the tensors, and thus every piece, to a page
    return len(text).to_bytes(8, "little") + text
