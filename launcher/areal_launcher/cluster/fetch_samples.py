"""Fetches files of samples of a cluster run, like its results: a small pod prints them to its log.

A log holds ``print_files.MAX_ENCODED_BYTES``. A larger file is read by a command in the pod, which needs the permission
to execute one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from areal_api.rollout_columns import file_name, step_of
from areal_launcher.bounded_files import parse_json
from areal_launcher.cluster.client import Cluster
from areal_launcher.cluster.fetch_results import (
    CONTAINER,
    ResultsSource,
    extract_files,
    read_archive,
    reader_pod,
    wait_until_running,
)
from areal_launcher.cluster.in_pod import print_files
from areal_launcher.errors import RunError
from areal_launcher.run_files import write_atomic

ROOM = 0.7  # bytes of files in a byte of log: base64, and the archive around them
MAX_BYTES = int(ROOM * print_files.MAX_ENCODED_BYTES)
MAX_FILE_BYTES = 2**30
POD_DEADLINE_S = 600  # of a pod that executes a command, in case it is not deleted


def sizes_of(cluster: Cluster, source: ResultsSource, folder: str) -> dict[int, int]:
    """Bytes of the files in a folder of the run, by their step, in the order of the steps."""
    name = f"{folder}/{print_files.LIST}"
    found = extract_files(read_archive(cluster, source, [f"{folder}/"]), [name])
    try:
        listed = parse_json(found.get(name, b""))
    except ValueError as error:
        raise RunError(f"the list of {folder}/ of {source.name} is damaged: {error}") from error
    sizes = listed.items() if isinstance(listed, dict) else ()
    steps = {step: size for file, size in sizes if (step := step_of(file)) is not None and isinstance(size, int)}
    return dict(sorted(steps.items()))


def fetch_steps(
    cluster: Cluster, source: ResultsSource, folder: str, steps: Sequence[int], target: Path, *, sizes: dict[int, int]
) -> None:
    """Fetch the files of ``steps`` into ``target``, as many at a time as a log holds.

    Raises ``FileNotFoundError`` for a step that has none, and ``RunError`` for one that cannot be fetched.
    """
    target.mkdir(parents=True, exist_ok=True)
    for part in _parts(source, steps, sizes):
        if sizes[part[0]] > MAX_BYTES:
            _fetch_large(cluster, source, f"{folder}/{file_name(part[0])}", target, size=sizes[part[0]])
            continue
        wanted = {f"{folder}/{file_name(step)}": step for step in part}
        found = extract_files(read_archive(cluster, source, list(wanted)), list(wanted))
        for name, step in wanted.items():
            if name not in found:
                raise FileNotFoundError(f"the samples of step {step} were deleted meanwhile")
            write_atomic(target / file_name(step), found[name])


def _parts(source: ResultsSource, steps: Sequence[int], sizes: dict[int, int]) -> Iterator[list[int]]:
    """Steps whose files fit into a log together; one that fits into none is alone."""
    part: list[int] = []
    room = MAX_BYTES
    for step in dict.fromkeys(steps):
        if step not in sizes:
            raise FileNotFoundError(f"{source.name} has no samples of step {step}")
        if part and sizes[step] > room:
            yield part
            part, room = [], MAX_BYTES
        part.append(step)
        room -= sizes[step]
    if part:
        yield part


def _fetch_large(cluster: Cluster, source: ResultsSource, name: str, target: Path, *, size: int) -> None:
    path = f"{source.directory}/{name}"
    if size > MAX_FILE_BYTES:
        raise RunError(f"{path} has {size} bytes, more than the {MAX_FILE_BYTES} that are read")
    body = reader_pod(source, ["sleep", str(POD_DEADLINE_S)], deadline_s=POD_DEADLINE_S)
    pod = cluster.create(body, source.namespace)["metadata"]["name"]
    partial = target / f".{PurePosixPath(name).name}.part"
    try:
        wait_until_running(cluster, source.namespace, pod)
        with partial.open("wb") as file:
            for chunk in cluster.exec(source.namespace, pod, CONTAINER, ["cat", path]):
                file.write(chunk)
                if file.tell() > size:
                    break
            received = file.tell()
        if received != size:
            raise RunError(f"{path} arrived with {received} of {size} bytes; try again")
        partial.replace(target / PurePosixPath(name).name)
    finally:
        partial.unlink(missing_ok=True)
        cluster.delete("Pod", source.namespace, pod, grace_s=0)
