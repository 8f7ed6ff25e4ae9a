"""Files in a bucket of a real S3 server, and errors of one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_api import names
from areal_api.bucket import BucketSpec
from areal_trainer.storage import check
from areal_trainer.storage.bucket import Bucket, BucketError
from hack.testbed.s3_server import S3Server


def test_files_go_into_the_bucket_and_come_back(bucket: Bucket, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096 * 70  # above the size of one part
    (tmp_path / "a").write_bytes(content)
    bucket.put(tmp_path / "a", "folder/a")
    bucket.put_text("text", "folder/b")
    assert bucket.names_below("folder/") == ["folder/a", "folder/b"]
    bucket.get("folder/a", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    bucket.delete(["folder/a"])
    assert bucket.names_below("") == ["folder/b"]
    bucket.check()
    assert bucket.names_below("") == ["folder/b"]


def test_a_bucket_that_does_not_exist_is_named(spec: BucketSpec) -> None:
    other = Bucket(spec.model_copy(update={"url": "s3://missing"}), "exp/trial0")
    with pytest.raises(BucketError, match=r"storage\.bucket: there is no bucket s3://missing at http"):
        other.check()


def test_an_account_without_permission_is_told_what_to_do(
    spec: BucketSpec, s3: S3Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in s3.account_without_access().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BucketError, match=r"storage\.bucket: no permission to write .* correct the credentials"):
        Bucket(spec, "exp/trial0").check()
    assert check.main({names.BUCKET: spec.model_dump_json(by_alias=True)}, "exp", "trial0") == 2
    assert capfd.readouterr().err.startswith("error: storage.bucket: no permission to write")


def test_wrong_and_missing_credentials_are_told_apart(spec: BucketSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(BucketError, match="no permission to write"):
        Bucket(spec, "exp/trial0").check()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(BucketError, match="there are no credentials for s3://team"):
        Bucket(spec, "exp/trial0").check()


def test_a_server_that_does_not_answer_is_no_error_of_the_user(spec: BucketSpec) -> None:
    gone = spec.model_copy(update={"endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(ConnectionError, match=r"storage\.bucket: cannot write .* at http://127\.0\.0\.1:9"):
        Bucket(gone, "exp/trial0").check()
