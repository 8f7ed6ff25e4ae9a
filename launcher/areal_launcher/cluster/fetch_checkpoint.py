"""The newest Hugging Face checkpoint of a run in a cluster, brought here: a tar archive out of a pod beside its volume.

A model does not fit into a log, so this needs the right to execute a command in a pod.
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
from areal_launcher.cluster.fetch_results import CONTAINER, Source, pod_beside, wait_until_running
from areal_launcher.cluster.in_pod import send_checkpoint
from areal_launcher.errors import RunError

LIFE_S = 4 * 3600  # of the pod, when nobody removes it
BLOCK_BYTES = 2**20


def fetch_checkpoint(cluster: Cluster, source: Source, target: Path) -> Path:
    """Bring the newest checkpoint below ``target``; its directory, which is there whole or not at all.

    Raises ``RunError`` where there is none, or it cannot be had.
    """
    pod = cluster.create(pod_beside(source, ["sleep", str(LIFE_S)], life_s=LIFE_S), source.namespace)["metadata"][
        "name"
    ]
    try:
        wait_until_running(cluster, source.namespace, pod)
        directory = str(names.checkpoints_dir(Path(source.directory)))
        command = ["python3", "-c", inspect.getsource(send_checkpoint), directory]
        return unpack(cluster.output_of(source.namespace, pod, CONTAINER, command), names.checkpoints_dir(target))
    finally:
        cluster.delete("Pod", source.namespace, pod, grace_s=0)


def unpack(parts: Iterator[bytes], target: Path) -> Path:
    """Unpack an archive of one directory into ``target``, aside first; the directory."""
    aside = target / ".part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    stream = Stream(parts)
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=BLOCK_BYTES) as tar:
            tar.extractall(aside, filter="data")
        stream.finish()
        (unpacked,) = aside.iterdir()
        whole = target / unpacked.name
        shutil.rmtree(whole, ignore_errors=True)
        return unpacked.rename(whole)
    except tarfile.ReadError as error:
        stream.finish()  # why the archive is not whole: what the command said
        raise RunError(f"the checkpoint did not arrive whole: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class Stream(io.RawIOBase):
    """Parts as a file that is read once."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._rest = b""

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        """At most as much as ``buffer`` takes; 0 at the end."""
        if not self._rest:
            self._rest = next(self._parts, b"")
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def finish(self) -> None:
        """Go through what is left: the error of a command comes after its output."""
        for _ in self._parts:
            pass
