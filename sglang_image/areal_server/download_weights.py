"""Published weights without a shared volume: a server downloads a version from the trainer, then loads it.

``POST names.SERVER_WEIGHTS_PATH {"url": …, "version": "v7", "files": {name: {"size": …, "xxh3_128": …}}}`` downloads
the files while the server keeps generating, and answers ``{"path": …}`` for /update_weights_from_disk. SGLang's check
of the API key applies to the route, so only the trainer names the URL.

``"deltas": {name: {"base": xxh3_128, "size": …, "xxh3_128": …}}`` offers ``<name>.delta`` for some of the files. A
server that holds a file of that name with the base's checksum downloads the delta instead. Either way a file is kept
only if it has the checksum in ``files``.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import threading
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from areal_server.apply_delta import apply_delta

logger = logging.getLogger(__name__)
FOLDER = Path("/tmp/areal-weights")
DELTA = ".delta"  # suffix
LISTING = "files.json"  # in a downloaded version: what it consists of
MAX_FILES = 10_000
CHUNK = 4 << 20
TIMEOUT_S = 60.0  # to connect, and between two parts of a file
Files = dict[str, dict[str, Any]]
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

        Turns the version before, which is loaded, into this one, or deletes it: the disk holds one version.
        """
        url, version, files, deltas = _checked(request)
        with self._lock:
            target = self._folder / version
            if _listing_of(target) == files and all(_has(target / name, files[name]["xxh3_128"]) for name in files):
                return target
            partial = self._folder / f".{version}.partial"
            held = self._take_held(partial)
            for name in held.keys() - files.keys():
                (partial / name).unlink(missing_ok=True)
            base_url = f"{url.rstrip('/')}/{version}"
            for name, expected in files.items():
                checksum = expected["xxh3_128"]
                if held.get(name) == checksum and _has(partial / name, checksum):
                    continue
                delta = deltas.get(name)
                if delta is not None and held.get(name) == delta["base"]:
                    try:
                        self._patch(f"{base_url}/{name}{DELTA}", partial / name, delta, checksum)
                        continue
                    except (ValueError, OSError) as error:
                        logger.warning("%s of %s is downloaded as a whole: %s", name, version, error)
                self._download(f"{base_url}/{name}", partial / name, expected)
            (partial / LISTING).write_text(json.dumps(files), encoding="utf-8")
            partial.rename(target)
            return target

    def _take_held(self, partial: Path) -> dict[str, str]:
        """Make the version that is held the partial one, and delete everything else: checksums by file.

        A crash then leaves no version that looks complete.
        """
        found = [path for path in self._folder.glob("v*") if _listing_of(path)]
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            if path not in found[:1]:
                shutil.rmtree(path, ignore_errors=True)
        if not found:
            partial.mkdir()
            return {}
        held = _listing_of(found[0])
        found[0].rename(partial)
        (partial / LISTING).unlink()
        return {name: str(entry["xxh3_128"]) for name, entry in held.items()}

    def _patch(self, url: str, file: Path, delta: dict[str, Any], checksum: str) -> None:
        """Bring a file to the next version in place. Raises ``ValueError`` unless it then has the checksum."""
        downloaded = file.with_name(f"{file.name}{DELTA}")
        try:
            self._download(url, downloaded, delta)
            apply_delta(downloaded, file)
        finally:
            downloaded.unlink(missing_ok=True)
        if not _has(file, checksum):
            raise ValueError(f"{url} does not lead to the file that the manifest lists")

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


def _listing_of(version: Path) -> Files:
    """What a downloaded version consists of; empty if that cannot be read."""
    try:
        files: Files = json.loads((version / LISTING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return files if isinstance(files, dict) else {}


def _has(file: Path, checksum: str) -> bool:
    """Whether the file is there with this checksum: what was downloaded may have been damaged or deleted since."""
    return file.is_file() and checksum_of(file) == checksum


def checksum_of(file: Path) -> str:
    """The xxh3_128 of a file."""
    digest = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _checked(request: Mapping[str, Any]) -> tuple[str, str, Files, Files]:
    """URL, version, files and deltas of a request."""
    url, version, files = (request.get(key) for key in ("url", "version", "files"))
    if not isinstance(url, str) or not url.startswith("http://"):
        raise ValueError(f"the URL {str(url)[:200]!r} is not http://…")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise ValueError(f"the version {str(version)[:50]!r} is not v<number>")
    if not isinstance(files, dict) or not 0 < len(files) <= MAX_FILES:
        raise ValueError(f"files is not a mapping of 1 to {MAX_FILES} names")
    _check_entries(files)
    deltas = request.get("deltas", {})
    if not isinstance(deltas, dict) or not deltas.keys() <= files.keys():
        raise ValueError("deltas is not a mapping of names in files")
    _check_entries(deltas)
    for name, delta in deltas.items():
        if not isinstance(delta.get("base"), str):
            raise ValueError(f"the delta of {name} names no base")
    return url, version, files, deltas


def _check_entries(files: Mapping[str, Any]) -> None:
    for name, expected in files.items():
        if not _NAME.fullmatch(name) or name == LISTING:
            raise ValueError(f"the file name {name[:200]!r} is not allowed")
        known = isinstance(expected, dict) and isinstance(expected.get("size"), int)
        if not known or not isinstance(expected.get("xxh3_128"), str):
            raise ValueError(f"{name} lacks a size or a checksum")
