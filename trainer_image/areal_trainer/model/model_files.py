"""Safetensors files of a published model, from which each rank reads its part of a parameter.

Most parameters are a tensor of the files. Where transformers converts tensors, such as those of a layer's experts,
which are one tensor in memory, it also states the inverse. Applied to a parameter, the inverse gives views of it, one
for each tensor of the files. A rank reads those tensors whose views reach into its part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

READABLE = frozenset(("F64", "F32", "F16", "BF16"))


class UnreadableFilesError(Exception):
    """The files hold other tensors than the model, so transformers has to convert them as a whole."""


@dataclass(frozen=True)
class _View:
    """A tensor of the files within a parameter: the arguments of ``Tensor.as_strided``."""

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def reaches(self, rows: range, row_size: int) -> bool:
        """Whether it has an element in ``rows`` of the parameter."""
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))
        return self.offset // row_size < rows.stop and last // row_size >= rows.start


class ModelFiles:
    """The files of one model; ``read`` fills its parameters and buffers."""

    def __init__(self, path: str, model: PreTrainedModel) -> None:
        """``model``: as transformers builds it, with parameters that are not sharded. ``path``: of the Hugging Face hub
        or local; files of the hub are downloaded.

        Raises ``UnreadableFilesError`` if a tensor of the model is not in them, or has another shape or type there.
        """
        self._files = _tensors(path, model)
        saved = model.state_dict().keys()
        self._buffers = [name for name, _ in model.named_buffers() if name in saved]
        tensors: dict[str, Tensor] = dict(model.named_parameters()) | {
            name: model.get_buffer(name) for name in self._buffers
        }
        self._views = {name: _views(model, name, tensor.detach().to("meta")) for name, tensor in tensors.items()}
        with _Reader(self._files) as reader:
            for view in (view for views in self._views.values() for view in views):
                reader.check(view.name, view.shape)

    def read(self, model: PreTrainedModel, parameters: Mapping[str, Tensor]) -> None:
        """Fill this rank's part of ``parameters``, which may be sharded, by the names of the model; and its buffers."""
        tensors = dict(parameters) | {name: model.get_buffer(name) for name in self._buffers}
        with torch.no_grad(), _Reader(self._files) as reader:
            for name, views in self._views.items():
                _read(reader, views, tensors[name])


class _Reader:
    """Opens each file once."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self._open: dict[Path, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise ``UnreadableFilesError`` unless the files have such a tensor."""
        if name not in self._files:
            raise UnreadableFilesError(f"its files have no tensor {name}")
        found = self._file(name).get_slice(name)
        if tuple(found.get_shape()) != shape or found.get_dtype() not in READABLE:
            raise UnreadableFilesError(f"{name} is {found.get_dtype()} {found.get_shape()} in its files")

    def part(self, name: str, box: tuple[slice, ...]) -> Tensor:
        """A part of a tensor; without slices all of it."""
        file = self._file(name)
        found: Tensor = file.get_slice(name)[box] if box else file.get_tensor(name)
        return found

    def _file(self, name: str) -> Any:
        path = self._files[name]
        if path not in self._open:
            self._open[path] = self._stack.enter_context(safe_open(path, framework="pt"))
        return self._open[path]


def _tensors(path: str, model: PreTrainedModel) -> dict[str, Path]:
    """The file of each tensor."""
    if getattr(model.config, "quantization_config", None) is not None:
        raise UnreadableFilesError("it is quantised")
    single = cached_file(path, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False)
    files = [single]
    if single is None:
        index = cached_file(path, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
        if index is None:
            raise UnreadableFilesError("it has no safetensors files")
        files, _ = get_checkpoint_shard_files(path, index)
    found: dict[str, Path] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            found |= dict.fromkeys(opened.keys(), Path(file))
    return found


def _views(model: PreTrainedModel, name: str, whole: Tensor) -> list[_View]:
    """The tensors of the files that the parameter ``name`` is made of. ``whole`` is on the meta device."""
    views = []
    with _ViewsForCopies():
        tensors = revert_weight_conversion(model, {name: whole})
    for published, view in tensors.items():
        if view.untyped_storage()._cdata != whole.untyped_storage()._cdata:
            raise UnreadableFilesError(f"{published} is computed from {name}")
        views.append(_View(published, tuple(view.shape), view.stride(), int(view.storage_offset())))
    if sum(math.prod(view.shape) for view in views) != whole.numel():
        raise UnreadableFilesError(f"its files have only a part of {name}")
    return views


class _ViewsForCopies(TorchDispatchMode):
    """A copy, such as that of ``contiguous``, is a view of the original instead, so that its place there is known."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.clone.default:
            return args[0].detach()
        return func(*args, **(kwargs or {}))


def _read(reader: _Reader, views: list[_View], parameter: Tensor) -> None:
    local, shape = parameter, tuple(parameter.shape)
    box = tuple(slice(0, size) for size in shape)
    if isinstance(parameter, DTensor):
        local = parameter.to_local()
        sizes, starts = compute_local_shape_and_global_offset(shape, parameter.device_mesh, parameter.placements)
        box = tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
    if local.numel() == 0:
        return
    contiguous = torch.empty(shape, device="meta").stride()
    if len(views) == 1 and (views[0].shape, views[0].stride) == (shape, contiguous):
        local.copy_(reader.part(views[0].name, box))
        return
    whole = torch.empty(shape, dtype=local.dtype)  # memory that nothing is written to is not allocated
    rows, row_size = range(box[0].start, box[0].stop), math.prod(shape[1:])
    for view in views:
        if view.reaches(rows, row_size):
            whole.as_strided(view.shape, view.stride, view.offset).copy_(reader.part(view.name, ()))
    local.copy_(whole[box])
