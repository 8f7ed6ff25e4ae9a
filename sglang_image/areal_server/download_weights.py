"""Published weights without a shared volume: a server downloads a version from the trainer, then loads it.

``POST names.SERVER_WEIGHTS_PATH {"url": …, "version": "v7", "files": {name: {"size": …, "xxh3_128": …}}}`` downloads
the files while the server keeps generating, and answers ``{"path": …}`` for /update_weights_from_disk. SGLang's check
of the API key applies to the route, so only the trainer names the URL.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

FOLDER = Path("/tmp/areal-weights")
LISTING = "files.json"  # in a downloaded version: what it consists of
MAX_FILES = 10_000
CHUNK = 4 << 20
TIMEOUT_S = 60.0  # to connect, and between two parts of a file
_VERSION, _NAME = re.compile(r"v[0-9]{1,12}"), re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")


class DownloadedWeights:
    """Keeps one version in a folder. Use from any thread; one download at a time."""

    def __init__(self, folder: Path, *, api_key: str | None) -> None:
        self._folder = folder
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._lock = threading.Lock()
        # A proxy of the environment is for the outside; the trainer is a neighbour.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def fetch(self, request: Mapping[str, Any]) -> Path:
        """The folder with a version. Raises ``ValueError`` for a request or a file that is wrong, else ``OSError``.

        Deletes the version before, which is loaded: the disk holds one version.
        """
        url, version, files = _checked(request)
        with self._lock:
            target = self._folder / version
            listing = json.dumps(files, sort_keys=True)
            if target.is_dir() and (target / LISTING).read_text(encoding="utf-8") == listing:
                return target
            shutil.rmtree(self._folder, ignore_errors=True)
            partial = self._folder / f".{version}.partial"
            partial.mkdir(parents=True)
            for name, expected in files.items():
                self._download(f"{url.rstrip('/')}/{version}/{name}", partial / name, expected)
            (partial / LISTING).write_text(listing, encoding="utf-8")
            partial.rename(target)
            return target

    def _download(self, url: str, file: Path, expected: dict[str, Any]) -> None:
        left, digest = int(expected["size"]), xxhash.xxh3_128()
        request = urllib.request.Request(url, headers=self._headers)
        with self._opener.open(request, timeout=TIMEOUT_S) as answer, file.open("wb") as output:
            while chunk := answer.read(CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise ValueError(f"{url} has more than the {expected['size']} bytes that its manifest lists")
                digest.update(chunk)
                output.write(chunk)
        if left or digest.hexdigest() != expected["xxh3_128"]:
            raise ValueError(f"{url} differs from its manifest: {left} bytes are missing, or the checksum is another")


def _checked(request: Mapping[str, Any]) -> tuple[str, str, dict[str, dict[str, Any]]]:
    """URL, version and files of a request."""
    url, version, files = (request.get(key) for key in ("url", "version", "files"))
    if not isinstance(url, str) or not url.startswith("http://"):
        raise ValueError(f"the URL {str(url)[:200]!r} is not http://…")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise ValueError(f"the version {str(version)[:50]!r} is not v<number>")
    if not isinstance(files, dict) or not 0 < len(files) <= MAX_FILES:
        raise ValueError(f"files is not a mapping of 1 to {MAX_FILES} names")
    for name, expected in files.items():
        if not _NAME.fullmatch(name) or name == LISTING:
            raise ValueError(f"the file name {name[:200]!r} is not allowed")
        known = isinstance(expected, dict) and isinstance(expected.get("size"), int)
        if not known or not isinstance(expected.get("xxh3_128"), str):
            raise ValueError(f"{name} lacks a size or a checksum")
    return url, version, files
