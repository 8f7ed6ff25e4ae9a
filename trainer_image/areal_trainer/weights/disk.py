"""Publishing weights to the servers through files.

A version is written to a temporary directory and renamed when complete. Servers only load directories with final names.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import xxhash

from areal_api import names
from areal_trainer.weights.broadcast import Broadcast
from areal_trainer.weights.finite import require_finite
from areal_trainer.weights.safetensors_writer import save_file

MANIFEST = "manifest.json"
SHARD_BYTES = 2 << 30  # bounds the host memory of publishing


class Publishable(Protocol):
    """The part of a policy that publishing uses."""

    def named_full_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every tensor unsharded, one at a time, under its Hugging Face name. Collective."""
        ...

    def save_model_config(self, directory: Path) -> None:
        """Write config.json and generation_config.json."""
        ...


@dataclass(frozen=True)
class WeightUpdate:
    """New weights for the servers: ``path``, ``broadcast``, or both (servers that miss the broadcast load ``path``)."""

    version: int
    path: Path | None = None
    broadcast: Broadcast | None = None

    def __post_init__(self) -> None:
        if self.path is None and self.broadcast is None:
            raise ValueError(f"WeightUpdate of version {self.version} has neither path nor broadcast; give one")


def publish_to_disk(policy: Publishable, *, run: Path, version: int, dtype: torch.dtype, writes: bool) -> Path:
    """Write ``weights/v<version>/`` atomically and durably, and return it. Collective over the policy's ranks.

    ``writes`` is True on the rank that writes; the others only take part in gathering the tensors. Keeps the last two
    versions. Raises ``NonFiniteWeightsError``, and publishes nothing, for weights that ``dtype`` cannot hold.
    """
    target = names.weights_version_dir(run, version)
    if not writes:
        for _ in policy.named_full_tensors():
            pass
        return target
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    checksums = write_model(policy, partial, dtype)
    write_manifest(partial, version, checksums)
    replace_directory(partial, target)
    _prune(names.weights_dir(run), keep=(version - 1, version))
    return target


def write_model(policy: Publishable, directory: Path, dtype: torch.dtype) -> dict[str, str]:
    """Write configuration and tensors of a Hugging Face model; return the checksum of each file with tensors.

    Raises ``NonFiniteWeightsError`` for weights that are not finite in ``dtype``.
    """
    policy.save_model_config(directory)
    return _write_shards(policy.named_full_tensors(), directory, dtype)


def verify_published(directory: Path) -> None:
    """Raise ``ValueError`` if a file is missing or differs from the manifest in size or checksum."""
    manifest = directory / MANIFEST
    if not manifest.is_file():
        raise ValueError(f"{directory} has no {MANIFEST}: it is not a published version")
    for name, expected in json.loads(manifest.read_text())["files"].items():
        file = directory / name
        size = file.stat().st_size if file.is_file() else None
        if size != expected["size"]:
            raise ValueError(f"{file} has {size} bytes, but its manifest lists {expected['size']}")
        if _checksum(file) != expected["xxh3_128"]:
            raise ValueError(f"{file} differs from the checksum in the manifest")


def latest_published(run: Path) -> tuple[int, Path] | None:
    """Highest published version, with its directory."""
    versions = sorted(
        (int(path.name[1:]), path) for path in names.weights_dir(run).glob("v*") if path.name[1:].isdigit()
    )
    return versions[-1] if versions else None


def replace_directory(partial: Path, target: Path) -> None:
    """Flush ``partial`` to disk and rename it to ``target``, replacing an older directory of that name.

    Files and directories get the modes of the process's umask: some libraries create files that only the owner may
    read.
    """
    umask = _umask()
    for path in [partial, *partial.rglob("*")]:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
        _fsync(path)
    if target.exists():
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        partial.rename(target)
    _fsync(target.parent)


def _write_shards(tensors: Iterable[tuple[str, torch.Tensor]], directory: Path, dtype: torch.dtype) -> dict[str, str]:
    """Write the tensors; return the checksum of each file."""
    shard: dict[str, torch.Tensor] = {}
    checksums: list[str] = []
    index: dict[str, int] = {}
    size = total = 0
    for name, tensor in tensors:
        require_finite(name, tensor, dtype)
        converts = (
            tensor.is_floating_point() and tensor.device.type != "cpu"
        )  # host tensors are converted by the writer
        host = tensor.detach().to(dtype if converts else tensor.dtype).cpu()
        nbytes = host.numel() * (dtype if host.is_floating_point() else host.dtype).itemsize
        if shard and size + nbytes > SHARD_BYTES:
            checksums.append(save_file(shard, directory / _shard_name(len(checksums)), dtype=dtype))
            shard, size = {}, 0
        shard[name] = host
        index[name] = len(checksums)
        size += nbytes
        total += nbytes
    checksums.append(save_file(shard, directory / _shard_name(len(checksums)), dtype=dtype))
    if len(checksums) == 1:
        (directory / _shard_name(0)).rename(directory / "model.safetensors")
        return {"model.safetensors": checksums[0]}
    weight_map = {name: _shard_name(number) for name, number in index.items()}
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1)
    (directory / "model.safetensors.index.json").write_text(text)
    return {_shard_name(number): checksum for number, checksum in enumerate(checksums)}


def _shard_name(number: int) -> str:
    return f"model-{number + 1:05d}.safetensors"


def write_manifest(directory: Path, version: int, checksums: Mapping[str, str]) -> None:
    """Write sizes and checksums of all files. ``checksums``: those that are known already."""
    files = {
        path.name: {"size": path.stat().st_size, "xxh3_128": checksums.get(path.name) or _checksum(path)}
        for path in sorted(directory.iterdir())
        if path.is_file()
    }
    (directory / MANIFEST).write_text(json.dumps({"version": version, "files": files}, indent=1))


def _checksum(file: Path) -> str:
    digest = xxhash.xxh3_128()
    buffer = bytearray(8 << 20)
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


def _umask() -> int:
    """The process's umask. Reading it with os.umask would change it for other threads."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1], 8) for line in lines if line.startswith("Umask:")), 0o022)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _prune(directory: Path, keep: tuple[int, ...]) -> None:
    kept = {names.weight_version(version) for version in keep}
    for path in directory.iterdir():
        if path.is_dir() and path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)
