"""Writing a safetensors file quickly: one thread converts the tensors while another hashes and writes them.

The format (https://huggingface.co/docs/safetensors) is the length of a JSON header in eight bytes, the header, and the
tensors' bytes.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
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
_WAITING = 4  # converted tensors that wait to be written: bounds the memory


def save_file(tensors: Mapping[str, torch.Tensor], file: Path, *, dtype: torch.dtype) -> str:
    """Write host tensors, floating ones as ``dtype``, durably; returns the file's xxh3_128.

    The tensors must stay as they are until it returns.
    """
    types = {name: dtype if tensor.is_floating_point() else tensor.dtype for name, tensor in tensors.items()}
    # Wide types first: then each tensor lies at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: (-types[name].itemsize, name))
    digest = xxhash.xxh3_128()
    with file.open("wb") as stream, ThreadPoolExecutor(1) as writer:

        def put(data: memoryview | bytes) -> None:
            digest.update(data)
            stream.write(data)

        waiting: deque[Future[None]] = deque([writer.submit(put, _head(tensors, names, types))])
        for name in names:
            converted = tensors[name].detach().to(types[name]).contiguous()
            waiting.append(writer.submit(put, memoryview(converted.reshape(-1).view(torch.uint8).numpy())))
            if len(waiting) > _WAITING:
                waiting.popleft().result()
        for last in waiting:
            last.result()
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()


def _head(tensors: Mapping[str, torch.Tensor], names: list[str], types: Mapping[str, torch.dtype]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in names:
        end = start + tensors[name].numel() * types[name].itemsize
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _NAMES[types[name]], "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
