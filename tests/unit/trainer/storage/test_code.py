"""Packed code in the bucket."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_trainer.storage.bucket import Bucket, BucketError
from areal_trainer.storage.code import get, put


def test_an_archive_is_written_once_and_comes_back(bucket: Bucket, tmp_path: Path) -> None:
    sha256 = "a" * 64
    (tmp_path / "archive").write_bytes(b"code")
    put(bucket, tmp_path / "archive", sha256)
    (tmp_path / "archive").write_bytes(b"other")
    put(bucket, tmp_path / "archive", sha256)
    get(bucket, tmp_path / "back", sha256)
    assert (tmp_path / "back").read_bytes() == b"code"


def test_an_archive_that_is_not_there_is_named(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(BucketError, match=r"code\.archive: s3://.*/bbbb.*does not exist; run grpo run"):
        get(bucket, tmp_path / "back", "b" * 64)
