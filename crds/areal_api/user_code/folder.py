"""Writes files that a stranger chose into a new folder: bounded in number and size, and never outside of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

MAX_FILES = 20_000
MAX_BYTES = 256 * 2**20  # of all files
MAX_DEPTH = 32
MAX_NAME_BYTES = 255
MAX_LINK = 1024  # characters of a symbolic link's target


class CodeError(ValueError):
    """Code that cannot be used. The message names the key of ``spec.code`` and the fix."""


class BoundedFolder:
    """A folder that is filled once. Files are created and never replaced; no path leaves the folder."""

    def __init__(self, root: Path, *, what: str, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES) -> None:
        """``root`` must not exist. ``what`` names the code in messages."""
        self._root = root
        self._what = what
        self._files_left = max_files
        self._bytes_left = max_bytes
        self._max_files, self._max_bytes = max_files, max_bytes
        self._links: list[tuple[PurePosixPath, str]] = []
        root.mkdir(parents=True)

    def add_file(self, name: str, chunks: Iterable[bytes], *, executable: bool = False) -> None:
        """Create a file. Raises ``CodeError`` for a path or a size that is not allowed."""
        path = self._accepted(name)
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(
                target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o755 if executable else 0o644
            )
        except FileExistsError as error:
            raise CodeError(f"{self._what} contains {name!r} twice") from error
        with os.fdopen(descriptor, "wb") as file:
            for chunk in chunks:
                self._bytes_left -= len(chunk)
                if self._bytes_left < 0:
                    raise CodeError(
                        f"{self._what} has more than {self._max_bytes} bytes of files; leave out data and models"
                    )
                file.write(chunk)

    def add_link(self, name: str, target: str) -> None:
        """Add a symbolic link, which ``close`` creates. Raises ``CodeError`` if it leaves the folder."""
        path = self._accepted(name)
        inside = os.path.normpath(path.parent / target)
        if len(target) > MAX_LINK or "\0" in target or target.startswith("/") or inside.split("/")[0] == "..":
            raise CodeError(f"{self._what}: the symbolic link {name!r} points outside of it; remove the link")
        self._links.append((path, target))

    def close(self) -> None:
        """Create the symbolic links: after all files, so that none is written through a link."""
        for path, target in self._links:
            link = self._root / path
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.parent.resolve().is_relative_to(self._root.resolve()):
                raise CodeError(f"{self._what}: {path} lies behind a symbolic link; remove the link")
            try:
                link.symlink_to(target)
            except FileExistsError as error:
                raise CodeError(f"{self._what} contains {str(path)!r} twice") from error
        for path, _ in self._links:  # links may lead to each other
            if not (self._root / path).resolve().is_relative_to(self._root.resolve()):
                raise CodeError(f"{self._what}: the symbolic link {path} leads outside of it; remove the link")

    def _accepted(self, name: str) -> PurePosixPath:
        self._files_left -= 1
        if self._files_left < 0:
            raise CodeError(f"{self._what} has more than {self._max_files} files; leave some out")
        parts = name.split("/")
        bad = any(part in ("", ".", "..") or len(os.fsencode(part)) > MAX_NAME_BYTES for part in parts)
        if bad or "\0" in name or len(parts) > MAX_DEPTH:
            raise CodeError(f"{self._what} contains the path {name[:200]!r}, which is not allowed; rename it")
        return PurePosixPath(name)
