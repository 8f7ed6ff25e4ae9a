"""Fetches the newest Hugging Face checkpoint of a cluster run, as a tar archive from a pod that mounts its volume.

A model does not fit into a log, so this needs permission to execute a command in a pod.
"""

from __future__ import annotations

import inspect
import io
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from areal_api import names
from areal_launcher.cluster.client import Cluster
from areal_launcher.cluster.fetch_results import CONTAINER, ResultsSource, reader_pod, wait_until_running
from areal_launcher.cluster.in_pod import send_checkpoint
from areal_launcher.errors import RunError

POD_DEADLINE_S = 4 * 3600  # in case the pod is not deleted
BLOCK_BYTES = 2**20
MAX_MEMBERS = 10_000
CHECKPOINT_NAME = re.compile(r"\w[\w.-]{0,200}", re.ASCII)


def fetch_checkpoint(cluster: Cluster, source: ResultsSource, target: Path) -> Path:
    """Fetch the newest checkpoint to a directory below ``target``, atomically; returns the directory.

    Raises ``RunError`` if there is none or it cannot be fetched.
    """
    body = reader_pod(source, ["sleep", str(POD_DEADLINE_S)], deadline_s=POD_DEADLINE_S)
    pod = cluster.create(body, source.namespace)["metadata"]["name"]
    try:
        wait_until_running(cluster, source.namespace, pod)
        directory = str(names.checkpoints_dir(Path(source.directory)))
        command = ["python3", "-c", inspect.getsource(send_checkpoint), directory]
        return unpack(cluster.exec(source.namespace, pod, CONTAINER, command), names.checkpoints_dir(target))
    finally:
        cluster.delete("Pod", source.namespace, pod, grace_s=0)


def unpack(chunks: Iterator[bytes], target: Path) -> Path:
    """Unpack an archive of one directory into ``target``, via a temporary directory; returns the directory."""
    partial = target / ".part"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    stream = ChunkReader(chunks)
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=BLOCK_BYTES) as tar:
            tar.extractall(partial, members=checked_members(tar, shutil.disk_usage(target).free), filter="data")
        stream.finish()
        unpacked = next(partial.iterdir(), None)
        if unpacked is None:
            raise RunError("the checkpoint arrived empty")
        return replace_directory(unpacked, target / unpacked.name)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        stream.finish()  # raises the command's own error, if it failed
        raise RunError(f"the checkpoint arrived incomplete or damaged: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def checked_members(tar: tarfile.TarFile, free_bytes: int) -> Iterator[tarfile.TarInfo]:
    """Members of an archive of one directory of files. Raises ``RunError`` for anything else, or more than fits."""
    root, total = None, 0
    for count, member in enumerate(tar):
        name = member.name.split("/")[0]
        root = root or name
        total += member.size
        if not CHECKPOINT_NAME.fullmatch(name) or name != root or not (member.isreg() or member.isdir()):
            raise RunError(f"the archive of the checkpoint contains {member.name!r}, which is not a file of one")
        if count >= MAX_MEMBERS:
            raise RunError(f"the archive of the checkpoint has more than {MAX_MEMBERS} files")
        if total > free_bytes:
            raise RunError(f"the checkpoint needs more than the {free_bytes / 2**30:.1f} GiB that are free; free some")
        yield member


def replace_directory(new: Path, final: Path) -> Path:
    """Move ``new`` to ``final``; an existing directory there is moved away first and then deleted."""
    old = new.with_name(".old")
    if final.exists():
        final.rename(old)
    try:
        return new.rename(final)
    except OSError:
        if old.exists():
            old.rename(final)
        raise


class ChunkReader(io.RawIOBase):
    """Presents an iterator of chunks as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        """Always true."""
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        """Fill ``buffer`` as far as possible; 0 at the end."""
        if not self._rest:
            self._rest = next(self._chunks, b"")
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def finish(self) -> None:
        """Consume the remaining chunks: a command's error follows its output."""
        for _ in self._chunks:
            pass
