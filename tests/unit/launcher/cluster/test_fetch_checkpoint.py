"""A checkpoint on its way out of a pod: the archive that is sent, the frames that carry it, what is unpacked."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websocket import ABNF

from areal_launcher.cluster.client import exec_output
from areal_launcher.cluster.fetch_checkpoint import unpack
from areal_launcher.cluster.in_pod import send_checkpoint
from areal_launcher.errors import RunError

STDOUT, STDERR, STATUS = 1, 2, 3
SUCCESS = {"status": "Success"}
FAILURE = {"status": "Failure", "message": "command terminated with exit code 3"}


class Frames:
    """What a connection brings, frame by frame; then it is closed."""

    def __init__(self, *frames: tuple[int, bytes]) -> None:
        self._frames: Iterator[tuple[int, bytes]] = iter(frames)

    def recv_data_frame(self, control: bool) -> tuple[int, Any]:
        for channel, data in self._frames:
            return ABNF.OPCODE_BINARY, ABNF(1, 0, 0, 0, ABNF.OPCODE_BINARY, 0, bytes([channel]) + data)
        return ABNF.OPCODE_CLOSE, ABNF(1, 0, 0, 0, ABNF.OPCODE_CLOSE, 0, b"")


def status_frame(status: dict[str, str]) -> tuple[int, bytes]:
    return STATUS, json.dumps(status).encode()


def checkpoint(folder: Path, name: str, *, weights: bytes, written_at: int) -> None:
    place = folder / name
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")
    (place / "model.safetensors").write_bytes(weights)
    os.utime(place, (written_at, written_at))


def sent(folder: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, send_checkpoint.__file__, str(folder)], capture_output=True, check=False)


def in_pieces(data: bytes, size: int) -> list[tuple[int, bytes]]:
    return [(STDOUT, data[at : at + size]) for at in range(0, len(data), size)]


def test_the_newest_checkpoint_arrives_unchanged(tmp_path: Path) -> None:
    weights = os.urandom(100_000)
    checkpoint(tmp_path / "there", "epoch1step9", weights=b"older", written_at=1000)
    checkpoint(tmp_path / "there", "epoch1step10", weights=weights, written_at=2000)
    (tmp_path / "there" / "epoch2step20").mkdir()  # just begun
    archive = sent(tmp_path / "there").stdout
    frames = Frames((STDOUT, b""), *in_pieces(archive, 1000), status_frame(SUCCESS))
    found = unpack(exec_output(frames), tmp_path / "here")
    assert found == tmp_path / "here" / "epoch1step10"
    assert (found / "model.safetensors").read_bytes() == weights
    assert list((tmp_path / "here").iterdir()) == [found]


def test_an_existing_local_checkpoint_is_replaced(tmp_path: Path) -> None:
    checkpoint(tmp_path / "there", "epoch1step1", weights=b"new", written_at=1000)
    checkpoint(tmp_path / "here", "epoch1step1", weights=b"old", written_at=1000)
    archive = sent(tmp_path / "there").stdout
    found = unpack(exec_output(Frames((STDOUT, archive), status_frame(SUCCESS))), tmp_path / "here")
    assert (found / "model.safetensors").read_bytes() == b"new"


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.95])
def test_an_incomplete_checkpoint_is_discarded(tmp_path: Path, kept: float) -> None:
    checkpoint(tmp_path / "there", "epoch1step1", weights=os.urandom(50_000), written_at=1000)
    archive = sent(tmp_path / "there").stdout
    frames = Frames(*in_pieces(archive[: int(len(archive) * kept)], 1000))
    with pytest.raises(RunError, match="ended without an exit status"):
        unpack(exec_output(frames), tmp_path / "here")
    assert list((tmp_path / "here").iterdir()) == []


def test_a_run_without_a_checkpoint_is_reported(tmp_path: Path) -> None:
    done = sent(tmp_path / "nothing")
    assert done.returncode == send_checkpoint.NO_CHECKPOINT
    frames = Frames((STDERR, done.stderr), status_frame(FAILURE))
    with pytest.raises(RunError, match="nothing contains no checkpoint"):
        unpack(exec_output(frames), tmp_path / "here")


def test_a_command_that_cannot_run_reports_the_reason(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="exit code 3"):
        unpack(exec_output(Frames(status_frame(FAILURE))), tmp_path / "here")


def tar(*members: tarfile.TarInfo) -> list[bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(min(member.size, 10))) if member.isreg() else None)
    return [buffer.getvalue()]


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


@pytest.mark.parametrize(
    "members",
    [
        [member("../outside")],
        [member("/etc/outside")],
        [member("a", tarfile.DIRTYPE), member("b/x")],
        [member("a/link", tarfile.SYMTYPE, link="/etc/passwd")],
        [member("a/pipe", tarfile.FIFOTYPE)],
        [member(".part/x")],
        [],
    ],
    ids=["parent", "absolute", "two directories", "link", "fifo", "hidden", "empty"],
)
def test_an_archive_that_is_not_a_checkpoint_is_refused_and_leaves_nothing(
    tmp_path: Path, members: list[tarfile.TarInfo]
) -> None:
    with pytest.raises(RunError, match="checkpoint"):
        unpack(iter(tar(*members)), tmp_path / "here")
    assert list((tmp_path / "here").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"here"}


def test_a_checkpoint_larger_than_the_disk_is_refused_by_its_header(tmp_path: Path) -> None:
    header = member("a/model.safetensors", size=2**60).tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(RunError, match=r"needs more than the .* GiB that are free"):
        unpack(iter([header + bytes(1024)]), tmp_path)


@settings(deadline=None, max_examples=60)
@given(data=st.lists(st.binary(max_size=600), max_size=4))
def test_any_bytes_are_an_error_and_never_a_crash(tmp_path_factory: pytest.TempPathFactory, data: list[bytes]) -> None:
    with pytest.raises(RunError):
        unpack(iter(data), tmp_path_factory.mktemp("target"))


@settings(deadline=None)
@given(frames=st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=50)), max_size=8))
def test_any_frames_are_output_or_an_error(frames: list[tuple[int, bytes]]) -> None:
    with contextlib.suppress(RunError):
        list(exec_output(Frames(*frames)))


def test_endless_error_output_is_bounded() -> None:
    frames = Frames(*[(STDERR, b"x" * 2**16)] * 100, status_frame(FAILURE))
    with pytest.raises(RunError) as failure:
        list(exec_output(frames))
    assert len(str(failure.value)) <= 2**14
