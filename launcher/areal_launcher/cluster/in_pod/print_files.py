"""Runs in a pod that mounts a run's volume and prints small files to its log. Standard library only.

``python3 -c SOURCE DIRECTORY NAME…`` prints a compressed tar archive in base64 between two markers: reading a log needs
no permission beyond reading logs. By default a container's log is cut at 10 MiB. A NAME that ends in ``/`` is a folder,
of which the archive contains a list: the sizes of its files by name, as JSON.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import sys
import tarfile

LIST = ".list"  # name of a list in the archive, below its folder
BEGIN, END = "--- areal files", "--- end"
MAX_PLAIN_BYTES = 256 * 2**20
MAX_ENCODED_BYTES = 8 * 2**20
LINE_LENGTH = 4096
MAX_LISTED = 200_000
TOO_LARGE = 3


def archive(directory: str, names: list[str]) -> bytes:
    """Compress the existing files into a tar archive. Raises ``ValueError`` if they are too large."""
    buffer = io.BytesIO()
    total = 0
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        for name in names:
            path = os.path.join(directory, name)
            if name.endswith("/"):
                data = listing(path)
                member = tarfile.TarInfo(name + LIST)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
                continue
            if not os.path.isfile(path):
                continue
            total += os.path.getsize(path)
            if total > MAX_PLAIN_BYTES:
                raise ValueError(f"the files up to {path} have {total} bytes, more than {MAX_PLAIN_BYTES}")
            tar.add(path, arcname=name)
    return buffer.getvalue()


def listing(folder: str) -> bytes:
    """The sizes of the files in a folder by name; none if there is no such folder."""
    sizes = {}
    if os.path.isdir(folder):
        with os.scandir(folder) as entries:
            for _, entry in zip(range(MAX_LISTED), entries, strict=False):
                if entry.is_file(follow_symlinks=False):
                    sizes[entry.name] = entry.stat().st_size
    return json.dumps(sizes).encode()


def encoded(data: bytes) -> str:
    """Encode ``data`` as lines of text between markers, with a digest. Raises ``ValueError`` if too long for a log."""
    text = base64.b64encode(data).decode()
    if len(text) > MAX_ENCODED_BYTES:
        raise ValueError(f"the encoded files have {len(text)} bytes, more than {MAX_ENCODED_BYTES}")
    lines = [text[at : at + LINE_LENGTH] for at in range(0, len(text), LINE_LENGTH)]
    return "\n".join([BEGIN, *lines, f"{END} {hashlib.sha256(data).hexdigest()}", ""])


def decoded(log: str) -> bytes:
    """Decode the output of ``encoded`` from a log with other lines around it. Raises ``ValueError`` if incomplete."""
    lines = log.splitlines()
    if BEGIN not in lines:
        raise ValueError("the log contains no files")
    lines = lines[lines.index(BEGIN) + 1 :]
    end = next((at for at, line in enumerate(lines) if line.startswith(END)), None)
    if end is None:
        raise ValueError("the log is incomplete")
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
