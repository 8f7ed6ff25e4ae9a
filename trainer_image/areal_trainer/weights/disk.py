"""Publishing weights to the servers through files.

Every rank writes its part of a version to a temporary directory, which is renamed when complete. Servers only load
directories with final names.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import xxhash

from areal_api import names
from areal_api.sizing.disk import DELTA_SHARE
from areal_trainer.ranks import Ranks
from areal_trainer.weights.broadcast import Broadcast
from areal_trainer.weights.delta import SUFFIX, write_delta
from areal_trainer.weights.finite import NonFiniteWeightsError, require_finite
from areal_trainer.weights.safetensors_writer import save_file

T = TypeVar("T")
MANIFEST = "manifest.json"
SINGLE = "model.safetensors"
BUFFERS = "model-buffers.safetensors"
SHARD_BYTES = 2 << 30  # bounds the host memory of publishing on a node


class Publishable(Protocol):
    """The part of a policy that publishing uses."""

    def named_full_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every tensor unsharded on rank 0, one at a time, under its Hugging Face name. Collective."""
        ...

    def named_own_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The same, but each tensor on one of the ranks: those that this rank writes. Collective."""
        ...

    def buffers(self) -> Mapping[str, torch.Tensor]:
        """Tensors of the model that are not trained but belong to its files, by their Hugging Face names."""
        ...

    def save_model_config(self, directory: Path) -> None:
        """Write config.json and generation_config.json."""
        ...


@dataclass(frozen=True)
class _Written:
    """The files with tensors of one rank."""

    checksums: dict[str, str]  # by file
    sizes: dict[str, int]  # bytes, by file
    weight_map: dict[str, str]  # tensor → file
    tensor_bytes: int


@dataclass(frozen=True)
class WeightUpdate:
    """New weights for the servers: ``path``, ``broadcast``, or both (servers that miss the broadcast load ``path``)."""

    version: int
    path: Path | None = None
    broadcast: Broadcast | None = None

    def __post_init__(self) -> None:
        if self.path is None and self.broadcast is None:
            raise ValueError(f"WeightUpdate of version {self.version} has neither path nor broadcast; give one")


def publish_to_disk(
    policy: Publishable, *, run: Path, version: int, dtype: torch.dtype, ranks: Ranks, deltas: bool = False
) -> Path:
    """Write ``weights/v<version>/`` atomically and durably, and return it. Collective; every rank writes its part.

    ``deltas`` adds to each file what changed since the version before, if that is here and less than ``DELTA_SHARE``.
    The version is complete once this returns on rank 0. Keeps the last two versions. Raises ``NonFiniteWeightsError``
    on every rank, and publishes nothing, for weights that ``dtype`` cannot hold; ``OSError`` if a rank cannot write.
    """
    target = names.weights_version_dir(run, version)
    partial = target.with_name(f".{target.name}.partial")
    checksums = write_model(policy, partial, dtype=dtype, ranks=ranks)
    before = names.weights_version_dir(run, version - 1)
    changes = _write_deltas(before, partial, ranks) if deltas else {}
    if ranks.is_first:
        write_manifest(partial, version, checksums, deltas=changes)
        replace_directory(partial, target)
        _prune(names.weights_dir(run), keep=(version - 1, version))
    return target


def write_model(policy: Publishable, directory: Path, *, dtype: torch.dtype, ranks: Ranks) -> dict[str, str]:
    """Write configuration and tensors of a Hugging Face model to a new directory. Collective.

    Buffers keep their values, whatever ``dtype`` is. Returns on rank 0 the checksum of each file with tensors.
    Raises on every rank what one of them raised: ``NonFiniteWeightsError`` for weights that are not finite in
    ``dtype``, or ``OSError``.
    """
    _on_every(ranks, lambda: _empty(directory) if ranks.is_first else None)
    parts = _on_every(ranks, lambda: _own_files(policy.named_own_tensors(), directory, dtype, ranks))

    def complete() -> dict[str, str]:
        if not ranks.is_first:
            return {}
        _require_written(directory, parts)
        policy.save_model_config(directory)
        return _write_index(directory, [*parts, *_write_buffers(policy.buffers(), directory)])

    return next(iter(_on_every(ranks, complete)), {})


def verify_published(directory: Path) -> None:
    """Raise ``ValueError`` for a file that is missing or differs from the manifest in size or checksum.

    Also for tensors that the manifest does not list: servers would load them.
    """
    manifest = directory / MANIFEST
    if not manifest.is_file():
        raise ValueError(f"{directory} has no {MANIFEST}: it is not a published version")
    listed = json.loads(manifest.read_text())["files"]
    foreign = sorted(path.name for path in directory.glob("*.safetensors") if path.name not in listed)
    if foreign:
        raise ValueError(f"{directory / foreign[0]} is not in the manifest: it belongs to another version")
    for name, expected in listed.items():
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


def _on_every(ranks: Ranks, action: Callable[[], T]) -> list[T]:
    """The results of all ranks, on rank 0. Raises on every rank what one of them raises. Collective."""
    result: T | Exception
    try:
        result = action()
    except (OSError, NonFiniteWeightsError) as error:
        result = error
    results = ranks.gather_from_all(result)
    failure = ranks.from_first(next((one for one in results if isinstance(one, Exception)), None))
    if failure is not None:
        raise failure
    return results


def _empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def _own_files(
    tensors: Iterator[tuple[str, torch.Tensor]], directory: Path, dtype: torch.dtype, ranks: Ranks
) -> _Written:
    """Write the tensors of this rank."""
    try:
        return _write_shards(tensors, directory, dtype, ranks)
    finally:
        for _ in tensors:  # after a failure, too: the other ranks need this one's part of theirs
            pass


def _write_deltas(before: Path, directory: Path, ranks: Ranks) -> dict[str, dict[str, Any]]:
    """On rank 0 the manifest's entries of all deltas to the version in ``before``. Collective; each rank its files."""

    def own() -> dict[str, dict[str, Any]]:
        if not (before / MANIFEST).is_file():
            return {}
        bases = json.loads((before / MANIFEST).read_text())["files"]
        files = sorted(directory.glob(f"{_prefix(ranks.rank)}*.safetensors"))
        if ranks.is_first and (directory / SINGLE).exists():
            files.append(directory / SINGLE)
        found: dict[str, dict[str, Any]] = {}
        for file in files:
            delta = file.with_name(f"{file.name}{SUFFIX}")
            if file.name in bases and write_delta(before / file.name, file, delta, limit=DELTA_SHARE):
                found[file.name] = _described(delta) | {"base": bases[file.name]["xxh3_128"]}
        return found

    return {name: entry for part in _on_every(ranks, own) for name, entry in part.items()}


def _write_shards(
    tensors: Iterable[tuple[str, torch.Tensor]], directory: Path, dtype: torch.dtype, ranks: Ranks
) -> _Written:
    limit = SHARD_BYTES // ranks.local_size
    shard: dict[str, torch.Tensor] = {}
    written = _Written({}, {}, {}, 0)
    size = total = 0

    def save() -> None:
        file = directory / f"{_prefix(ranks.rank)}{len(written.checksums) + 1:05d}.safetensors"
        written.checksums[file.name] = save_file(shard, file, dtype=dtype)
        written.sizes[file.name] = file.stat().st_size
        written.weight_map.update(dict.fromkeys(shard, file.name))
        shard.clear()

    for name, tensor in tensors:
        require_finite(name, tensor, dtype)
        # Host tensors are converted by the writer.
        converts = tensor.is_floating_point() and tensor.device.type != "cpu"
        host = tensor.detach().to(dtype if converts else tensor.dtype).cpu()
        nbytes = host.numel() * (dtype if host.is_floating_point() else host.dtype).itemsize
        if shard and size + nbytes > limit:
            save()
            size = 0
        shard[name] = host
        size += nbytes
        total += nbytes
    if shard:
        save()
    return replace(written, tensor_bytes=total)


def _write_buffers(buffers: Mapping[str, torch.Tensor], directory: Path) -> list[_Written]:
    """Write them in float32, which holds every value of the model's files; nothing without any."""
    if not buffers:
        return []
    file, host = directory / BUFFERS, {name: tensor.detach().cpu() for name, tensor in buffers.items()}
    checksum = save_file(host, file, dtype=torch.float32)
    size = sum(tensor.numel() * (4 if tensor.is_floating_point() else tensor.itemsize) for tensor in host.values())
    return [_Written({BUFFERS: checksum}, {BUFFERS: file.stat().st_size}, dict.fromkeys(host, BUFFERS), size)]


def _prefix(rank: int) -> str:
    return f"model-{rank + 1:05d}-"


def _require_written(directory: Path, written: Sequence[_Written]) -> None:
    """Raise ``OSError`` for a file that is not what a rank wrote."""
    for rank, part in enumerate(written):
        for name, size in part.sizes.items():
            file = directory / name  # asked for by name: NFS may list a directory as it was a minute ago
            found = file.stat().st_size if file.is_file() else None
            if found != size:
                raise OSError(
                    f"rank {rank} wrote {size} bytes to {file}, but rank 0 finds {found}; all nodes of the trainer "
                    "must see the same cluster.fileroot"
                )
    expected = {name for part in written for name in part.sizes}
    foreign = sorted(path.name for path in directory.iterdir() if path.name not in expected)
    if foreign:
        raise OSError(f"{directory / foreign[0]} was written by no rank; does another run use this run directory?")


def _write_index(directory: Path, written: Sequence[_Written]) -> dict[str, str]:
    """Write the index, which a single file does not need; return the checksum of each file with tensors."""
    checksums = {name: checksum for part in written for name, checksum in part.checksums.items()}
    if len(checksums) == 1:
        [(name, checksum)] = checksums.items()
        (directory / name).rename(directory / SINGLE)
        return {SINGLE: checksum}
    weight_map = {tensor: file for part in written for tensor, file in part.weight_map.items()}
    total = sum(part.tensor_bytes for part in written)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1)
    (directory / "model.safetensors.index.json").write_text(text)
    return checksums


def write_manifest(
    directory: Path,
    version: int,
    checksums: Mapping[str, str],
    *,
    deltas: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write sizes and checksums of all files. ``checksums``: those that are known already.

    ``deltas``: by file the size and checksum of its delta, and the checksum of the delta's base.
    """
    found = {path.name for path in directory.iterdir() if path.is_file() and path.suffix != SUFFIX} | checksums.keys()
    files = {name: _described(directory / name, checksums.get(name)) for name in sorted(found)}
    content = {"version": version, "files": files, "deltas": dict(deltas or {})}
    (directory / MANIFEST).write_text(json.dumps(content, indent=1))


def _described(file: Path, checksum: str | None = None) -> dict[str, Any]:
    return {"size": file.stat().st_size, "xxh3_128": checksum or _checksum(file)}


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
