"""A directory as a compressed archive whose digest depends on its content alone, and the way back."""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import io
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from areal_api.user_code.folder import MAX_BYTES, MAX_FILES, BoundedFolder, CodeError

IGNORE_FILE = ".grpoignore"
ALWAYS_IGNORED = (".git/", "__pycache__/", "*.pyc", ".venv/", ".DS_Store", ".mypy_cache/", ".pytest_cache/")
MAX_IGNORE_BYTES = 65_536
MAX_CONFIG_MAP_BYTES = 700 * 1024  # compressed; a ConfigMap holds 1 MiB, in base64 and with metadata
TAR_OVERHEAD = 64 * MAX_FILES * 512  # of headers and padding
CHUNK = 65_536


@dataclass(frozen=True)
class Archive:
    """A packed directory. ``sha256`` is that of the tar file before compression."""

    data: bytes
    sha256: str
    files: int


def pack(directory: Path, *, key: str = "code.directory") -> Archive:
    """Pack the files of ``directory`` that its ``.grpoignore`` does not name.

    The same files give the same digest on every machine: names are sorted, times and owners left out. Raises
    ``CodeError`` for a directory that is missing or too large, and for links that leave it.
    """
    if not directory.is_dir():
        raise CodeError(f"{key}: there is no directory {directory.absolute()}; give the folder that holds the code")
    root = directory.resolve()
    tar, digest, count, total = io.BytesIO(), hashlib.sha256(), 0, 0
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in _files(root, _ignored(root, key), key):
            path = (root / name).resolve()
            if not path.is_relative_to(root):
                raise CodeError(f"{key}: {name} is a symbolic link out of {root}; remove it or add it to {IGNORE_FILE}")
            content = path.read_bytes() if path.stat().st_size <= MAX_BYTES else None
            count, total = count + 1, total + (MAX_BYTES + 1 if content is None else len(content))
            if content is None or total > MAX_BYTES or count > MAX_FILES:
                raise CodeError(
                    f"{key}: {root} has more than {MAX_FILES} files or {MAX_BYTES // 2**20} MiB; add data and models "
                    f"to {root / IGNORE_FILE}"
                )
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755 if os.access(path, os.X_OK) else 0o644
            archive.addfile(info, io.BytesIO(content))
    if not count:
        raise CodeError(f"{key}: {root} contains no file that {IGNORE_FILE} does not name; give the folder of the code")
    digest.update(tar.getvalue())
    return Archive(gzip.compress(tar.getvalue(), mtime=0), digest.hexdigest(), count)


def unpack(file: BinaryIO, into: Path, *, sha256: str, key: str = "code.archive") -> None:
    """Unpack an archive into ``into``, which appears complete or not at all.

    Raises ``CodeError`` if its digest is not ``sha256``, and for everything that ``pack`` does not write.
    """
    partial = into.with_name(f"{into.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    folder = BoundedFolder(partial, what=key)
    source = _Decompressed(file, key)
    try:
        with tarfile.open(fileobj=source, mode="r|") as archive:  # type: ignore[call-overload]
            for member in archive:
                content = archive.extractfile(member) if member.isreg() else None
                if content is None:
                    raise CodeError(f"{key} contains {member.name[:200]!r}, which is no regular file")
                folder.add_file(member.name, iter(lambda: content.read(CHUNK), b""), executable=bool(member.mode & 64))  # noqa: B023
        while source.read(CHUNK):
            pass
    except (tarfile.TarError, zlib.error, OSError, EOFError) as error:
        raise CodeError(f"{key} cannot be read: {error}; run grpo run again") from error
    if source.sha256 != sha256:
        raise CodeError(f"{key}: the archive has the digest {source.sha256}, not {sha256}; run grpo run again")
    folder.close()
    partial.rename(into)


class _Decompressed(io.RawIOBase):
    """The bytes of a gzip file, at most those of an archive within bounds, and their digest."""

    def __init__(self, file: BinaryIO, key: str) -> None:
        self._file = gzip.GzipFile(fileobj=file)
        self._left = MAX_BYTES + TAR_OVERHEAD
        self._digest = hashlib.sha256()
        self._key = key

    @property
    def sha256(self) -> str:
        """Digest of what was read."""
        return self._digest.hexdigest()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(CHUNK if size < 0 else size)
        self._left -= len(data)
        if self._left < 0:
            raise CodeError(f"{self._key} has more than {MAX_BYTES} bytes of files; leave out data and models")
        self._digest.update(data)
        return data


def _ignored(root: Path, key: str) -> tuple[str, ...]:
    """The patterns of the ignore file, and those that always apply."""
    file = root / IGNORE_FILE
    if not file.is_file():
        return ALWAYS_IGNORED
    if file.stat().st_size > MAX_IGNORE_BYTES:
        raise CodeError(f"{key}: {file} has more than {MAX_IGNORE_BYTES} bytes; shorten it")
    lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    negated = next((line for line in lines if line.startswith("!")), None)
    if negated is not None:
        raise CodeError(f"{key}: {file} has {negated}, but patterns cannot be negated; remove the line")
    return (*ALWAYS_IGNORED, *(line for line in lines if line and not line.startswith("#")))


def _files(root: Path, patterns: tuple[str, ...], key: str) -> Iterator[str]:
    """Relative names of the files to pack, sorted."""
    found: list[str] = []
    for directory, folders, files in os.walk(root):
        below = Path(directory).relative_to(root).as_posix()
        prefix = "" if below == "." else f"{below}/"
        folders[:] = sorted(name for name in folders if not _matches(f"{prefix}{name}", patterns, is_folder=True))
        link = next((name for name in folders if (Path(directory) / name).is_symlink()), None)
        if link is not None:
            raise CodeError(f"{key}: {prefix}{link} is a symbolic link to a folder; add it to {IGNORE_FILE}")
        found += [name for file in files if not _matches(name := f"{prefix}{file}", patterns, is_folder=False)]
        if len(found) > MAX_FILES:
            raise CodeError(f"{key}: {root} has more than {MAX_FILES} files; add some to {root / IGNORE_FILE}")
    yield from sorted(name for name in found if (root / name).is_file())


def _matches(name: str, patterns: tuple[str, ...], *, is_folder: bool) -> bool:
    """Whether a pattern names the path: at any depth, or with a slash from the root; a final slash means a folder."""
    for pattern in patterns:
        if pattern.endswith("/") and not is_folder:
            continue
        pattern = pattern.rstrip("/")
        anchored = "/" in pattern
        if fnmatch.fnmatchcase(name if anchored else name.rpartition("/")[2], pattern.lstrip("/")):
            return True
    return False
