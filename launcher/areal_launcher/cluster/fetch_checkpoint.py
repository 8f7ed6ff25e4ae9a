"""Fetches the newest Hugging Face checkpoint of a cluster run, as a tar archive from a pod that mounts its volume.

A model does not fit into a log, so this needs permission to execute a command in a pod.
"""

from __future__ import annotations

import inspect
import io
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
            tar.extractall(partial, filter="data")
        stream.finish()
        (unpacked,) = partial.iterdir()
        final = target / unpacked.name
        shutil.rmtree(final, ignore_errors=True)
        return unpacked.rename(final)
    except tarfile.ReadError as error:
        stream.finish()  # raises the command's own error, if it failed
        raise RunError(f"the checkpoint arrived incomplete: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
