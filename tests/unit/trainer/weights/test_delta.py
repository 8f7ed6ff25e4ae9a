"""Deltas of published files: both ends, in the files and over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from areal_server import download_weights
from areal_server.apply_delta import apply_delta
from areal_server.download_weights import DownloadedWeights
from areal_trainer.ranks import Ranks
from areal_trainer.weights import delta as deltas
from areal_trainer.weights.delta import write_delta
from areal_trainer.weights.disk import MANIFEST, publish_to_disk, verify_published
from areal_trainer.weights.file_server import FileServer
from areal_trainer.weights.safetensors_writer import save_file

NAME = "model.safetensors"


class Weights:
    """A policy of float32 tensors, published in bfloat16."""

    def __init__(self, size: int = 40_000) -> None:
        self._generator = torch.Generator().manual_seed(1)
        self._tensors = {name: torch.randn(size, generator=self._generator) for name in ("a", "b")}

    def change(self, share: float, size: float = 0.01) -> None:
        """Change a share of the elements by about ``size`` of their value."""
        for tensor in self._tensors.values():
            chosen = torch.rand(len(tensor), generator=self._generator) < share
            tensor[chosen] *= 1 + size

    def named_full_tensors(self) -> object:
        raise AssertionError("files need the tensors of this rank only")

    def named_own_tensors(self) -> object:
        return iter(self._tensors.items())

    def buffers(self) -> dict[str, torch.Tensor]:
        return {}

    def save_model_config(self, directory: Path) -> None:
        (directory / "config.json").write_text("{}")


def publish(policy: Weights, run: Path, version: int) -> Path:
    one: object = policy
    return publish_to_disk(
        one,  # type: ignore[arg-type]
        run=run,
        version=version,
        dtype=torch.bfloat16,
        ranks=Ranks.current(),
        deltas=True,
    )


def request(server: FileServer, version: Path) -> dict[str, object]:
    manifest = json.loads((version / MANIFEST).read_text())
    return {
        "url": f"http://127.0.0.1:{server.port}",
        "version": version.name,
        "files": manifest["files"],
        "deltas": manifest["deltas"],
    }


@pytest.fixture
def two_versions(tmp_path: Path) -> tuple[Path, Path]:
    """Two published versions, of which the second has a delta."""
    policy = Weights()
    first = publish(policy, tmp_path / "run", 1)
    policy.change(0.05)
    return first, publish(policy, tmp_path / "run", 2)


@pytest.mark.parametrize("block", [7, 4 << 20])
@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.flatten()[::3].copy_(tensor.flatten()[::3].flip(0)),
        lambda tensor: tensor.flatten()[:1].fill_(1),
        lambda tensor: tensor.flatten()[-1:].fill_(0),
        lambda tensor: None,
        lambda tensor: tensor.fill_(1),
    ],
    ids=["many", "first", "last", "none", "all"],
)
def test_a_delta_gives_the_bytes_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], object], block: int
) -> None:
    monkeypatch.setattr(deltas, "BLOCK", block)
    chance = torch.Generator().manual_seed(3)
    tensors = {
        "wide": torch.randint(-(2**62), 2**62, (5, 11), generator=chance),
        "float": torch.randn(31, 3, generator=chance),
        "byte": torch.randint(0, 255, (50,), generator=chance).to(torch.uint8),
        "flag": torch.rand(17, generator=chance) < 0.5,
        "empty": torch.empty(0),
        "untouched": torch.ones(9),
    }
    base, new, held = (tmp_path / name for name in ("base", "new", "held"))
    for dtype in (torch.bfloat16, torch.float32):
        save_file(tensors, base, dtype=dtype)
        changed = {name: tensor.clone() for name, tensor in tensors.items()}
        for name in ("wide", "float", "byte", "flag"):
            change(changed[name])
        save_file(changed, new, dtype=dtype)
        assert write_delta(base, new, tmp_path / "delta", limit=10.0)
        held.write_bytes(base.read_bytes())
        apply_delta(tmp_path / "delta", held)
        assert held.read_bytes() == new.read_bytes()


def test_bfloat16_weights_of_which_few_change_have_a_small_delta(tmp_path: Path) -> None:
    policy = Weights(size=1_000_000)
    publish(policy, tmp_path, 1)
    policy.change(0.02)
    version = publish(policy, tmp_path, 2)
    assert (version / f"{NAME}.delta").stat().st_size < 0.02 * (version / NAME).stat().st_size


def test_there_is_no_delta_for_other_shapes_and_none_that_is_large(tmp_path: Path) -> None:
    for name, tensor in (("a", torch.ones(64, 3)), ("b", torch.ones(3, 64)), ("c", torch.randn(64, 3))):
        save_file({"x": tensor}, tmp_path / name, dtype=torch.float32)
    assert not write_delta(tmp_path / "a", tmp_path / "b", tmp_path / "delta", limit=10.0)
    assert not write_delta(tmp_path / "a", tmp_path / "c", tmp_path / "delta", limit=0.01)
    assert not (tmp_path / "delta").exists()


def test_only_a_version_whose_base_is_here_has_deltas_and_all_are_whole(tmp_path: Path) -> None:
    policy = Weights()
    for version, has_delta in ((1, False), (2, True), (4, False)):
        path = publish(policy, tmp_path, version)
        verify_published(path)
        assert load_file(path / NAME).keys() == {"a", "b"}
        manifest = json.loads((path / MANIFEST).read_text())
        assert (NAME in manifest["deltas"]) == (path / f"{NAME}.delta").exists() == has_delta
        assert f"{NAME}.delta" not in manifest["files"]
        policy.change(0.1)


def test_a_server_that_holds_the_base_downloads_only_the_delta(tmp_path: Path, two_versions: tuple[Path, Path]) -> None:
    first, second = two_versions
    there = DownloadedWeights(tmp_path / "there", api_key=None)
    with FileServer(first.parent, port=0, api_key=None) as server:
        there.fetch(request(server, first))
        whole = second.rename(tmp_path / "whole")
        second.mkdir()
        for name in (MANIFEST, f"{NAME}.delta"):  # the server could not download anything else
            (second / name).write_bytes((whole / name).read_bytes())
        path = there.fetch(request(server, second))
    assert (path / NAME).read_bytes() == (whole / NAME).read_bytes()
    assert sorted(one.name for one in path.iterdir()) == ["config.json", "files.json", NAME]
    assert [one.name for one in (tmp_path / "there").iterdir()] == ["v2"]


def test_a_server_with_another_base_or_none_downloads_the_whole_file(
    tmp_path: Path, two_versions: tuple[Path, Path]
) -> None:
    first, second = two_versions
    (second / f"{NAME}.delta").unlink()  # it would fail if a server asked for it
    other = publish(Weights(size=40_001), tmp_path / "other", 1)
    for number, held in enumerate((other, None)):
        there = DownloadedWeights(tmp_path / f"there{number}", api_key=None)
        if held is not None:
            with FileServer(held.parent, port=0, api_key=None) as server:
                there.fetch(request(server, held))
        with FileServer(first.parent, port=0, api_key=None) as server:
            path = there.fetch(request(server, second))
        assert (path / NAME).read_bytes() == (second / NAME).read_bytes()


def header_of(delta: bytes) -> tuple[dict[str, object], bytes]:
    length = int.from_bytes(delta[:8], "little")
    return json.loads(delta[8 : 8 + length]), delta[8 + length :]


def with_header(delta: bytes, change: Callable[[dict], object]) -> bytes:  # type: ignore[type-arg]
    header, streams = header_of(delta)
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + streams


HARM: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda delta: delta[:-100],
    "empty": lambda delta: b"",
    "no header": lambda delta: b"\x05\0\0\0\0\0\0\0{}{}{}",
    "endless header": lambda delta: b"\xff" * 8 + delta,
    "noise": lambda delta: delta[:-40] + bytes(40),
    "of another size": lambda delta: with_header(delta, lambda header: header.update(size=3)),
    "no blocks": lambda delta: with_header(delta, lambda header: header.update(blocks=[])),
    "outside": lambda delta: with_header(delta, lambda header: header["blocks"][0].update(start=10**9)),
    "before": lambda delta: with_header(delta, lambda header: header["blocks"][0].update(start=-2)),
    "shifted": lambda delta: with_header(delta, lambda header: header["blocks"][0].update(start=4098)),
    "too many": lambda delta: with_header(delta, lambda header: header["blocks"][0].update(changed=2**40)),
    "too few": lambda delta: with_header(delta, lambda header: header["blocks"][0].update(changed=1)),
    "wide": lambda delta: with_header(delta, lambda header: header["blocks"][0].update(width=3)),
    "lengths": lambda delta: with_header(delta, lambda header: header["blocks"][0].update(bytes=[-1, 2])),
    "a word": lambda delta: with_header(delta, lambda header: header["blocks"][0].update(count="x")),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM.keys())
def test_a_delta_that_cannot_be_proven_is_replaced_by_the_whole_file(
    tmp_path: Path,
    two_versions: tuple[Path, Path],
    harm: Callable[[bytes], bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = two_versions
    there = DownloadedWeights(tmp_path / "there", api_key=None)
    delta = second / f"{NAME}.delta"
    with FileServer(first.parent, port=0, api_key=None) as server:
        there.fetch(request(server, first))
        delta.write_bytes(harm(delta.read_bytes()))
        body = request(server, second)
        entry = body["deltas"][NAME]  # type: ignore[index]
        entry |= {"size": delta.stat().st_size, "xxh3_128": download_weights.checksum_of(delta)}
        path = there.fetch(body)
    assert (path / NAME).read_bytes() == (second / NAME).read_bytes()
    assert f"{NAME} of v2 is downloaded as a whole" in caplog.text


def test_an_interrupted_delta_leaves_nothing_that_looks_complete(
    tmp_path: Path, two_versions: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two_versions
    there = DownloadedWeights(tmp_path / "there", api_key=None)

    def killed(delta: Path, file: Path) -> None:
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    with FileServer(first.parent, port=0, api_key=None) as server:
        there.fetch(request(server, first))
        monkeypatch.setattr(download_weights, "apply_delta", killed)
        with pytest.raises(KeyboardInterrupt):
            there.fetch(request(server, second))
        monkeypatch.undo()
        assert list((tmp_path / "there").glob("v*")) == []
        for version in (second, first):
            path = there.fetch(request(server, version))
            assert (path / NAME).read_bytes() == (version / NAME).read_bytes()


@pytest.mark.parametrize(
    "harm",
    [Path.unlink, lambda file: file.write_bytes(b"x"), lambda file: (file.parent / "files.json").write_text("{")],
    ids=["deleted", "damaged", "unknown"],
)
def test_a_held_file_that_was_damaged_or_deleted_since_is_downloaded_again(
    tmp_path: Path, two_versions: tuple[Path, Path], harm: Callable[[Path], object]
) -> None:
    first, second = two_versions
    there = DownloadedWeights(tmp_path / "there", api_key=None)
    with FileServer(first.parent, port=0, api_key=None) as server:
        for file in (NAME, "config.json"):
            for version in (first, second):  # the version that is held, and the next one
                held = there.fetch(request(server, first))
                harm(held / file)
                path = there.fetch(request(server, version))
                for name in (NAME, "config.json"):
                    assert (path / name).read_bytes() == (version / name).read_bytes()


@pytest.mark.parametrize(
    "entry",
    [
        {"../a": {"size": 1, "xxh3_128": "0", "base": "0"}},
        {NAME: {"size": 1, "xxh3_128": "0"}},
        {NAME: {"base": "0"}},
        {NAME: None},
        [],
    ],
)
def test_a_request_with_other_deltas_is_refused(tmp_path: Path, entry: object) -> None:
    files = {NAME: {"size": 1, "xxh3_128": "0"}}
    with pytest.raises(ValueError, match=r"deltas is not|names no base|lacks a size"):
        DownloadedWeights(tmp_path, api_key=None).fetch(
            {"url": "http://127.0.0.1:9", "version": "v1", "files": files, "deltas": entry}
        )
