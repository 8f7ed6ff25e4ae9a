"""Results fetched from a cluster."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_launcher.cluster.fetch_results import extract_files
from areal_launcher.cluster.in_pod import print_files
from areal_launcher.cluster.logs import attempt_of
from areal_launcher.errors import RunError


def test_only_requested_files_are_extracted(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "config.yaml").write_text("y")
    assert extract_files(print_files.archive(str(tmp_path), ["secret", "config.yaml"])) == {"config.yaml": b"y"}


def archive(*members: tuple[str, int]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        for name, size in members:
            member = tarfile.TarInfo(name)
            member.size = size
            tar.addfile(member, io.BytesIO(bytes(size)))
    return buffer.getvalue()


def test_an_archive_that_expands_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(print_files, "MAX_PLAIN_BYTES", 2**20)
    bomb = archive(("config.yaml", 10), ("padding", 50 * 2**20))
    assert len(bomb) < 2**16
    with pytest.raises(RunError, match="incomplete or larger than"):
        extract_files(bomb)


@settings(deadline=None, max_examples=60)
@given(cut=st.floats(0, 1), noise=st.binary(max_size=20), at=st.floats(0, 1))
def test_a_damaged_archive_is_an_error_and_never_a_crash(cut: float, noise: bytes, at: float) -> None:
    data = archive(("config.yaml", 3000), ("stats.jsonl", 10), ("../../etc/passwd", 5))
    data = data[: int(len(data) * cut)]
    place = int(len(data) * at)
    try:
        files = extract_files(data[:place] + noise + data[place + len(noise) :])
    except RunError as error:
        assert "archive of the files" in str(error)  # noqa: PT017
    else:
        assert set(files) <= {"config.yaml", "stats.jsonl"}


@pytest.mark.parametrize(("label", "attempt"), [("3", 3), (None, 0), ("x", 0), ("9" * 5000, 0), ("-1", 0)])
def test_a_label_that_someone_changed_is_not_a_crash(label: str | None, attempt: int) -> None:
    labels = {} if label is None else {"areal.dev/attempt": label}
    assert attempt_of({"metadata": {"labels": labels}}) == attempt
