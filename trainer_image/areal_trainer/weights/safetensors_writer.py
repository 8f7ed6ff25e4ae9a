"""Writing a safetensors file quickly: its bytes pass once through a buffer that stays in the processor's cache.

There they are converted, hashed and handed to the system, which writes them to the device while the next ones are made.

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
_PIECE_BYTES = 1 << 20  # fits into the second-level cache; a multiple of every element's size and of a page
_AHEAD_BYTES = 16 << 20  # the device is set to work each time as much has been handed over
_PAGE_BYTES = 4096
_SYNC_FILE_RANGE_WRITE = 2  # of linux/fs.h: start writing back, do not wait

_libc = ctypes.CDLL(None, use_errno=True)  # Python has neither call; its posix_fallocate writes zeros where it must
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def save_file(tensors: Mapping[str, torch.Tensor], file: Path, *, dtype: torch.dtype) -> str:
    """Write host tensors, floating ones as ``dtype``, durably; returns the file's xxh3_128."""
    types = {name: dtype if tensor.is_floating_point() else tensor.dtype for name, tensor in tensors.items()}
    # Wide types first: then each tensor lies at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: (-types[name].itemsize, name))
    digest = xxhash.xxh3_128()
    head = _head(tensors, names, types)
    size = len(head) + sum(tensors[name].numel() * types[name].itemsize for name in names)
    with file.open("wb", buffering=0) as stream:
        handle = stream.fileno()
        _reserve(handle, size)
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
    """The bytes of all tensors in their types, end to end; a piece is valid until the next one is asked for."""
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


def _reserve(handle: int, size: int) -> None:
    """Find room for the whole file at once: quicker than piece by piece, and a full disk shows before any work."""
    _advise(lambda: _libc.fallocate(handle, 0, 0, size))


def _start_writing_back(handle: int, start: int, end: int) -> None:
    _advise(lambda: _libc.sync_file_range(handle, start, end - start, _SYNC_FILE_RANGE_WRITE))


def _advise(call: Callable[[], int]) -> None:
    """Make a call that only saves time: a file system that does not know it is none the worse."""
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
    text += b" " * (-(8 + len(text)) % _PAGE_BYTES)  # the tensors start with a page, and so does every piece
    return len(text).to_bytes(8, "little") + text
