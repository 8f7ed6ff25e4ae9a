"""Keeps a bucket in step with a run directory, in the background, and fills an empty run directory from it.

Directories (recovery checkpoints, checkpoints) are complete once their manifest is in the bucket, which is written
after their files and deleted before them: a reader never sees a part. The run directory decides while the trainer runs,
so an upload that fails is made good by the next one, and a rollback removes what the bucket has of the collapse.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from areal_api import names
from areal_trainer.storage.bucket import Bucket, BucketError

logger = logging.getLogger(__name__)
PERIOD_S = 10.0  # between looks at the run directory
CLOSE_S = 20.0
COMPLETE = ".complete.json"  # suffix of manifests
RECOVER, CHECKPOINTS = "recover", "checkpoints"
RESULTS = ("config.yaml", "stats.jsonl", "summary.json")
MAX_FILES = 100_000
CHUNK = 8 << 20
State = tuple[tuple[str, int, int], ...]


class Mirror:
    """Uploads from one thread. Use on rank 0; ``close`` at the end of the run."""

    def __init__(self, run: Path, bucket: Bucket, *, period_s: float = PERIOD_S) -> None:
        self._run = run
        self._bucket = bucket
        self._period_s = period_s
        self._uploaded: dict[str, State] = {}  # directory → state of its files when it was uploaded
        self._pruned_for: list[str] | None = None  # directories of the run when the bucket was last pruned
        self._results: dict[str, tuple[int, int]] = {}  # name → size and time of the uploaded file
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="bucket", daemon=True)

    def start(self) -> None:
        """Begin to upload. What the bucket holds already is not sent again."""
        for name in complete_directories(self._bucket):
            directory = self._run / name
            if directory.is_dir() and _files_of(self._bucket, name) == _described(directory):
                self._uploaded[name] = _state(directory)
        self._thread.start()

    def finish(self) -> None:
        """Upload the rest. Raises ``RuntimeError`` if that fails: the next start tries again."""
        self._stop()
        try:
            self.sync()
        except (OSError, BucketError) as error:
            raise RuntimeError(f"the run is complete, but was not copied to {self._bucket.url}: {error}") from error

    def close(self) -> None:
        """Stop without uploading the rest. An upload that is under way gets ``CLOSE_S`` to complete."""
        self._stop(timeout_s=CLOSE_S)

    def sync(self) -> None:
        """Upload what is new, then delete what is no longer kept."""
        directories = {path.relative_to(self._run).as_posix(): path for path in self._directories()}
        for name, directory in directories.items():
            state = _state(directory)
            if self._uploaded.get(name) != state and self._upload(directory, name):
                self._uploaded[name] = state
                self._pruned_for = None
        for name in RESULTS:
            self._upload_result(name)
        if self._pruned_for != list(directories):  # listing a bucket costs money
            self._prune()
            self._pruned_for = list(directories)

    def _watch(self) -> None:
        failing = False
        while not self._end.wait(self._period_s):
            try:
                self.sync()
                failing = False
            except (OSError, BucketError) as error:
                if not failing:
                    logger.warning("not copied to %s, will try again: %s", self._bucket.url, error)
                failing = True

    def _stop(self, *, timeout_s: float | None = None) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _directories(self) -> list[Path]:
        """Complete directories, in the order in which they were written: the newest checkpoint last."""
        recover = [path for path in names.recover_dir(self._run).glob("step*") if path.is_dir()]
        checkpoints = [path for path in names.checkpoints_dir(self._run).glob("[!.]*") if path.is_dir()]
        newest = sorted(recover, key=step_of)[-self._bucket.spec.keep :]
        return [*sorted(checkpoints), *newest]

    def _upload(self, directory: Path, name: str) -> bool:
        """Whether the directory was uploaded; not if the run deleted it meanwhile."""
        earlier = self._bucket.names_below(f"{name}/")
        try:
            files = _described(directory)
            self._forget([name])
            for relative in files:
                self._bucket.put(directory / relative, f"{name}/{relative}")
        except FileNotFoundError:
            if directory.exists():
                raise
            return False
        self._bucket.delete([one for one in earlier if one.removeprefix(f"{name}/") not in files])
        self._bucket.put_text(json.dumps({"files": files}, indent=1), f"{name}{COMPLETE}")
        return True

    def _upload_result(self, name: str) -> None:
        file = self._run / name
        if file.is_file():
            state = (file.stat().st_size, file.stat().st_mtime_ns)
            if self._results.get(name) != state:
                self._bucket.put(file, name)
                self._results[name] = state

    def _prune(self) -> None:
        """Delete recovery checkpoints that are too many or of a collapse, and files without a manifest."""
        complete = [name for name in complete_directories(self._bucket) if name.startswith(f"{RECOVER}/")]
        here = [step_of(path) for path in names.recover_dir(self._run).glob("step*")]
        valid = [name for name in complete if not here or step_of(Path(name)) <= max(here)]
        kept = sorted(valid, key=lambda name: step_of(Path(name)))[-self._bucket.spec.keep :]
        self._forget([name for name in complete if name not in kept])
        files = self._bucket.names_below(RECOVER)
        self._bucket.delete([name for name in files if not name.endswith(COMPLETE) and _directory(name) not in kept])

    def _forget(self, directories: Sequence[str]) -> None:
        """Delete the manifests of directories, after which none of them is read."""
        there = complete_directories(self._bucket) if directories else []
        self._bucket.delete([f"{name}{COMPLETE}" for name in directories if name in there])
        for name in directories:
            self._uploaded.pop(name, None)


@contextmanager
def mirrored(run: Path, bucket: Bucket | None, *, resumes: bool) -> Iterator[Mirror | None]:
    """Restore the run directory if ``resumes``, and copy it to the bucket while the context is entered.

    Without a bucket nothing happens. Raises ``BucketError`` or ``OSError`` if the bucket cannot be used.
    """
    if bucket is None:
        yield None
        return
    restored = restore(run, bucket) if resumes else None
    if restored is not None:
        logger.info("restored %s from %s", restored, bucket.url)
    mirror = Mirror(run, bucket)
    mirror.start()
    try:
        yield mirror
    finally:
        mirror.close()


def restore(run: Path, bucket: Bucket) -> str | None:
    """Fill a run directory without a newer recovery checkpoint from the bucket; the name of what was restored, or None.

    Raises ``BucketError`` for files that differ from their manifest.
    """
    complete = [name for name in complete_directories(bucket) if name.startswith(f"{RECOVER}/")]
    if not complete:
        return None
    newest = max(complete, key=lambda name: step_of(Path(name)))
    here = [step_of(path) for path in names.recover_dir(run).glob("step*")]
    if here and max(here) >= step_of(Path(newest)):
        return None
    target = run / newest
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name, expected in _files_of(bucket, newest).items():
        file = partial / name
        file.parent.mkdir(parents=True, exist_ok=True)
        bucket.get(f"{newest}/{name}", file)
        if file.stat().st_size != expected["size"] or _checksum(file) != expected["xxh3_128"]:
            raise BucketError(
                f"storage.bucket: {bucket.url}/{newest}/{name} differs from its manifest; delete {newest}{COMPLETE} "
                "there to resume from the checkpoint before it"
            )
    for name in RESULTS:
        if not (run / name).exists() and name in bucket.names_below(name):
            bucket.get(name, run / name)
    partial.rename(target)
    return newest


def complete_directories(bucket: Bucket) -> list[str]:
    """Names of the directories in the bucket that are complete."""
    found = [*bucket.names_below(RECOVER), *bucket.names_below(CHECKPOINTS)]
    return [name.removesuffix(COMPLETE) for name in found if name.endswith(COMPLETE)]


def step_of(directory: Path) -> int:
    """The step of ``recover/step<N>``; −1 for other names."""
    number = directory.name.removeprefix("step")
    return int(number) if number.isascii() and number.isdecimal() else -1


def _files_of(bucket: Bucket, directory: str) -> dict[str, dict[str, Any]]:
    """The manifest of a directory. Others may write to the bucket: names stay inside of the directory."""
    manifest = f"{directory}{COMPLETE}"
    try:
        files = json.loads(bucket.get_text(manifest))["files"]
        valid = isinstance(files, dict) and len(files) <= MAX_FILES and all(map(_is_inside, files))
        if not valid or not all({"size", "xxh3_128"} <= set(entry) for entry in files.values()):
            raise ValueError("its files are not of this directory")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BucketError(f"storage.bucket: {bucket.url}/{manifest} cannot be read: {error}; delete it") from error
    return dict(files)


def _described(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and checksum of each file."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {
        path.relative_to(directory).as_posix(): {"size": path.stat().st_size, "xxh3_128": _checksum(path)}
        for path in files
    }


def _state(directory: Path) -> State:
    """What changes when a file of the directory is replaced, without reading it."""
    try:
        stats = [(path.name, path.stat()) for path in sorted(directory.rglob("*")) if path.is_file()]
    except FileNotFoundError:  # the run deletes the directory
        return ()
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _directory(name: str) -> str:
    """``recover/step4`` of ``recover/step4/state/a``."""
    return "/".join(name.split("/")[:2])


def _checksum(file: Path) -> str:
    digest = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
