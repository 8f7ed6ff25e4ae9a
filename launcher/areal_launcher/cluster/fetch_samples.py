"""Fetches files of samples of a cluster run, like its results: a small pod prints them to its log.

A log holds ``print_files.MAX_ENCODED_BYTES``, so a larger file is refused with the command that copies it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from areal_api.rollout_columns import file_name, step_of
from areal_launcher.bounded_files import parse_json
from areal_launcher.cluster.client import Cluster
from areal_launcher.cluster.fetch_results import ResultsSource, extract_files, read_archive
from areal_launcher.cluster.in_pod import print_files
from areal_launcher.errors import RunError
from areal_launcher.run_files import write_atomic

ROOM = 0.7  # bytes of files in a byte of log: base64, and the archive around them
MAX_BYTES = int(ROOM * print_files.MAX_ENCODED_BYTES)


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

    Raises ``FileNotFoundError`` for a step that has none, and ``RunError`` for one that is too large.
    """
    target.mkdir(parents=True, exist_ok=True)
    for part in _parts(source, folder, steps, sizes):
        wanted = {f"{folder}/{file_name(step)}": step for step in part}
        found = extract_files(read_archive(cluster, source, list(wanted)), list(wanted))
        for name, step in wanted.items():
            if name not in found:
                raise FileNotFoundError(f"the samples of step {step} were deleted meanwhile")
            write_atomic(target / file_name(step), found[name])


def _parts(source: ResultsSource, folder: str, steps: Sequence[int], sizes: dict[int, int]) -> Iterator[list[int]]:
    part: list[int] = []
    room = MAX_BYTES
    for step in dict.fromkeys(steps):
        if step not in sizes:
            raise FileNotFoundError(f"{source.name} has no samples of step {step}")
        if sizes[step] > MAX_BYTES:
            raise RunError(
                f"{source.directory}/{folder}/{file_name(step)} has {sizes[step] / 2**20:.1f} MiB, more than the "
                f"{MAX_BYTES / 2**20:.1f} MiB that a pod's log holds; copy it with kubectl cp from a pod that mounts "
                f"the volume claim {source.claim}"
            )
        if sizes[step] > room:
            yield part
            part, room = [], MAX_BYTES
        part.append(step)
        room -= sizes[step]
    if part:
        yield part
