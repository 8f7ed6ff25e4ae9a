"""Reads files that other programs wrote, with a bound on size and without ever blocking."""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

MAX_JSON_BYTES = 4 * 2**20


class DamagedFileError(ValueError):
    """A file whose content cannot be used; the message names the file and the problem."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file. Raises ``FileNotFoundError``, or ``DamagedFileError`` if it is not a readable regular file.

    Opening a FIFO or a device can block for ever; ``O_NONBLOCK`` and the check of the type prevent it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedFileError(f"{path} is not a regular file; remove it")
    with os.fdopen(descriptor, "rb") as file:
        yield file


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes; raises like ``opened``."""
    try:
        with opened(path) as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise DamagedFileError(f"{path} has more than {limit} bytes; remove it")
    return data


def read_tail(path: Path, limit: int) -> bytes:
    """The last ``limit`` bytes of a regular file; raises like ``opened``."""
    with opened(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
        return file.read(limit)


def read_object(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any] | None:
    """The JSON object in a file, None if the file does not exist. Raises ``DamagedFileError`` for anything else."""
    try:
        content = parse_json(read_bytes(path, limit))
    except FileNotFoundError:
        return None
    except DamagedFileError:
        raise
    except ValueError as error:
        raise DamagedFileError(f"{path} is not valid JSON ({error}); remove it") from error
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path} does not contain a JSON object; remove it")
    return content


def parse_json(data: bytes) -> Any:
    """Parse JSON. Raises ``ValueError`` for invalid text, undecodable bytes and excessive nesting."""
    try:
        return json.loads(data.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def number(value: object) -> float | None:
    """``value`` if it is a finite JSON number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None
