"""Published weights on their way to servers without the run directory: both ends, over HTTP."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from areal_server.download_weights import DownloadedWeights
from areal_trainer.weights.disk import MANIFEST, write_manifest
from areal_trainer.weights.file_server import FileServer

KEY = "s3cret"


def publish(folder: Path, version: int, content: bytes) -> dict[str, dict[str, object]]:
    """``v<version>``; returns the files of its manifest."""
    directory = folder / f"v{version}"
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(content)
    (directory / "config.json").write_text("{}")
    write_manifest(directory, version, {})
    files: dict[str, dict[str, object]] = json.loads((directory / MANIFEST).read_text())["files"]
    return files


def test_a_version_is_downloaded_and_replaces_the_one_before(tmp_path: Path) -> None:
    weights = DownloadedWeights(tmp_path / "there", api_key=KEY)
    content = os.urandom(9 << 20)
    files = publish(tmp_path / "here", 3, content)
    with FileServer(tmp_path / "here", port=0, api_key=KEY) as server:
        url = f"http://127.0.0.1:{server.port}"
        path = weights.fetch({"url": url, "version": "v3", "files": files})
        assert (path / "model.safetensors").read_bytes() == content
        assert (path / "config.json").read_text() == "{}"
        other = publish(tmp_path / "here", 4, b"other")
        assert weights.fetch({"url": url, "version": "v4", "files": other}).name == "v4"
        assert [one.name for one in (tmp_path / "there").iterdir()] == ["v4"]
    assert weights.fetch({"url": "http://127.0.0.1:9", "version": "v4", "files": other}).name == "v4"  # it is there


def test_another_run_with_the_same_version_is_downloaded_again(tmp_path: Path) -> None:
    weights = DownloadedWeights(tmp_path / "there", api_key=None)
    for run, content in (("one", b"1"), ("two", b"2")):
        files = publish(tmp_path / run, 1, content)
        with FileServer(tmp_path / run, port=0, api_key=None) as server:
            path = weights.fetch({"url": f"http://127.0.0.1:{server.port}", "version": "v1", "files": files})
        assert (path / "model.safetensors").read_bytes() == content


@pytest.mark.parametrize("change", [{"size": 1}, {"size": 10**6}, {"xxh3_128": "0" * 32}])
def test_a_file_that_differs_from_its_manifest_is_never_loaded(tmp_path: Path, change: dict[str, object]) -> None:
    files = publish(tmp_path / "here", 1, b"content")
    files["model.safetensors"] |= change
    weights = DownloadedWeights(tmp_path / "there", api_key=None)
    with (
        FileServer(tmp_path / "here", port=0, api_key=None) as server,
        pytest.raises(ValueError, match=r"model\.safetensors (differs from its manifest|has more than)"),
    ):
        weights.fetch({"url": f"http://127.0.0.1:{server.port}", "version": "v1", "files": files})
    assert not (tmp_path / "there" / "v1").exists()


@pytest.mark.parametrize(
    ("url", "version", "name"),
    [
        ("file:///etc", "v1", "passwd"),
        ("http://a", "../v1", "a"),
        ("http://a", "v1", "../a"),
        ("http://a", "v1", "/etc/passwd"),
        ("http://a", "v1", ".hidden"),
        ("http://a", "v1", "files.json"),
    ],
)
def test_a_request_that_leads_elsewhere_is_refused(tmp_path: Path, url: str, version: str, name: str) -> None:
    weights = DownloadedWeights(tmp_path, api_key=None)
    files = {name: {"size": 1, "xxh3_128": "0"}}
    with pytest.raises(ValueError, match=r"is not http|is not v<number>|is not allowed"):
        weights.fetch({"url": url, "version": version, "files": files})


@pytest.mark.parametrize(
    "path", ["/v1/../secret", "/secret", "/v1/", "/v1/%2e%2e/secret", "/v1/../../v1/config.json", "/v1"]
)
def test_only_files_of_versions_are_served(tmp_path: Path, path: str) -> None:
    publish(tmp_path / "here", 1, b"x")
    (tmp_path / "here" / "secret").write_text("s")
    with FileServer(tmp_path / "here", port=0, api_key=None) as server:
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}")
        assert caught.value.code == 404


@pytest.mark.parametrize("key", [None, "other"])
def test_nothing_is_served_without_the_key(tmp_path: Path, key: str | None) -> None:
    files = publish(tmp_path / "here", 1, b"x")
    weights = DownloadedWeights(tmp_path / "there", api_key=key)
    with FileServer(tmp_path / "here", port=0, api_key=KEY) as server, pytest.raises(OSError, match="401"):
        weights.fetch({"url": f"http://127.0.0.1:{server.port}", "version": "v1", "files": files})
