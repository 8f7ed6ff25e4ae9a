"""Runs in a pod beside a run's volume, with the standard library alone, and writes small files of it to its log.

``python3 -c SOURCE DIRECTORY NAME…`` prints a tar archive, compressed and in base64 between two marks, since a log is
the one way out of a pod that needs no other right than to read logs. A container's log is cut at 10 MiB by default.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import sys
import tarfile

BEGIN, END = "--- areal files", "--- end"
MAX_PLAIN_BYTES = 256 * 2**20
MAX_ENCODED_BYTES = 8 * 2**20
LINE = 4096
TOO_LARGE = 3


def archive(directory: str, names: list[str]) -> bytes:
    """The files that there are, as a compressed tar archive; ``ValueError`` where they are too many bytes."""
    buffer = io.BytesIO()
    total = 0
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        for name in names:
            path = os.path.join(directory, name)
            if not os.path.isfile(path):
                continue
            total += os.path.getsize(path)
            if total > MAX_PLAIN_BYTES:
                raise ValueError(f"{path} makes it {total} bytes, more than {MAX_PLAIN_BYTES}")
            tar.add(path, arcname=name)
    return buffer.getvalue()


def encoded(data: bytes) -> str:
    """``data`` as lines of text between marks, with its digest; ``ValueError`` where it is too long for a log."""
    text = base64.b64encode(data).decode()
    if len(text) > MAX_ENCODED_BYTES:
        raise ValueError(f"the files take {len(text)} bytes, more than {MAX_ENCODED_BYTES}")
    lines = [text[at : at + LINE] for at in range(0, len(text), LINE)]
    return "\n".join([BEGIN, *lines, f"{END} {hashlib.sha256(data).hexdigest()}", ""])


def decoded(log: str) -> bytes:
    """What ``encoded`` was given, from a log with other lines around it; ``ValueError`` where it is not whole."""
    lines = log.splitlines()
    if BEGIN not in lines:
        raise ValueError("the log holds no files")
    lines = lines[lines.index(BEGIN) + 1 :]
    end = next((at for at, line in enumerate(lines) if line.startswith(END)), None)
    if end is None:
        raise ValueError("the log is not whole")
    data = base64.b64decode("".join(lines[:end]))
    if lines[end] != f"{END} {hashlib.sha256(data).hexdigest()}":
        raise ValueError("the log is damaged")
    return data


def main(arguments: list[str]) -> int:
    """Print the files of a directory."""
    try:
        sys.stdout.write(encoded(archive(arguments[0], arguments[1:])))
    except ValueError as error:
        print(error, file=sys.stderr)
        return TOO_LARGE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
