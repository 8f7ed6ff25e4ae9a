"""Packing a directory and unpacking what a stranger may have changed."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from areal_api.user_code import archive
from areal_api.user_code.archive import Archive, pack, unpack
from areal_api.user_code.folder import CodeError


def code(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def hostile(*members: tarfile.TarInfo) -> Archive:
    """An archive that ``pack`` would not write."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as file:
        for member in members:
            file.addfile(member, io.BytesIO(b"x" * member.size))
    return Archive(gzip.compress(tar.getvalue()), hashlib.sha256(tar.getvalue()).hexdigest(), len(members))


def member(name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 1) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size if kind == tarfile.REGTYPE else 0
    return info


def test_what_was_packed_is_unpacked(tmp_path: Path) -> None:
    source = code(tmp_path / "source", train="print(1)", package__reward="x = 1")
    (source / "train").chmod(0o755)
    packed = pack(source)
    unpack(io.BytesIO(packed.data), tmp_path / "out", sha256=packed.sha256)
    assert (tmp_path / "out" / "package" / "reward").read_text() == "x = 1"
    assert os.access(tmp_path / "out" / "train", os.X_OK)
    assert packed.files == 2


def test_the_digest_depends_on_the_content_alone(tmp_path: Path) -> None:
    first = code(tmp_path / "first", b="2", a="1")
    second = code(tmp_path / "second", a="1", b="2")
    os.utime(second / "a", (1, 1))
    assert pack(first) == pack(second)
    code(second, a="3")
    assert pack(first).sha256 != pack(second).sha256


def test_ignored_files_are_left_out(tmp_path: Path) -> None:
    written = ("keep", "data/big", "deep/data/big", "runs/a", "deep/runs", "a.txt", "__pycache__/a.pyc", ".git/HEAD")
    for name in written:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".grpoignore").write_text("# data\ndata/\n/runs\n*.txt\n")
    with tarfile.open(fileobj=io.BytesIO(pack(tmp_path).data)) as file:
        assert file.getnames() == [".grpoignore", "deep/runs", "keep"]


@pytest.mark.parametrize(
    "entry",
    [
        member("../outside"),
        member("/etc/outside"),
        member("a//b"),
        member("a/./b"),
        member("link", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        member("link", kind=tarfile.LNKTYPE, link="../outside"),
        member("device", kind=tarfile.CHRTYPE),
        member("/".join("d" * 40)),
        member("n" * 300),
    ],
)
def test_what_pack_does_not_write_is_refused(tmp_path: Path, entry: tarfile.TarInfo) -> None:
    packed = hostile(entry)
    target = tmp_path / "deep" / "out"
    with pytest.raises(CodeError, match=r"code\.archive"):
        unpack(io.BytesIO(packed.data), target, sha256=packed.sha256)
    assert not target.exists()
    assert not (tmp_path / "deep" / "outside").exists()


def test_an_archive_with_one_name_twice_is_refused(tmp_path: Path) -> None:
    packed = hostile(member("a"), member("a"))
    with pytest.raises(CodeError, match="'a' twice"):
        unpack(io.BytesIO(packed.data), tmp_path / "out", sha256=packed.sha256)


def test_a_bomb_stops_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 2**20)
    monkeypatch.setattr(archive, "TAR_OVERHEAD", 0)
    packed = hostile(member("zeros", size=2**22))
    assert len(packed.data) < 2**15
    with pytest.raises(CodeError, match="more than 1048576 bytes"):
        unpack(io.BytesIO(packed.data), tmp_path / "out", sha256=packed.sha256)


def test_another_digest_is_refused(tmp_path: Path) -> None:
    packed = pack(code(tmp_path / "source", a="1"))
    with pytest.raises(CodeError, match=r"has the digest \w+, not 0000"):
        unpack(io.BytesIO(packed.data), tmp_path / "out", sha256="0" * 64)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("data", [b"", b"no gzip", gzip.compress(b"no tar" * 200)], ids=["empty", "no gzip", "no tar"])
def test_a_damaged_archive_is_an_error_of_one_line(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(CodeError, match=r"^code\.archive"):
        unpack(io.BytesIO(data), tmp_path / "out", sha256="0" * 64)


def test_a_directory_that_cannot_be_packed_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CodeError, match=r"code\.directory: there is no directory"):
        pack(tmp_path / "missing")
    with pytest.raises(CodeError, match="contains no file"):
        pack(tmp_path)
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(CodeError, match="link is a symbolic link out of"):
        pack(tmp_path)
    code(tmp_path, **{".grpoignore": "link\n!a\n"})
    with pytest.raises(CodeError, match="cannot be negated"):
        pack(tmp_path)
    code(tmp_path, **{".grpoignore": "link\n"}, big="x" * 100)
    monkeypatch.setattr(archive, "MAX_BYTES", 50)
    with pytest.raises(CodeError, match=r"add data and models to .*\.grpoignore"):
        pack(tmp_path)
