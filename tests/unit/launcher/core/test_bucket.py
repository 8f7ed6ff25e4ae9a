"""The check of the bucket before a run starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_launcher.core.bucket import check_bucket
from areal_launcher.errors import RunError
from hack.testbed.s3_server import S3Server
from support.local_runs import load


def test_a_bucket_that_does_not_exist_is_an_error_of_one_sentence(experiment_path: Path, tmp_path: Path) -> None:
    store = S3Server(tmp_path / "s3")
    store.create_bucket("team")
    store.start()
    credentials = ",".join(f"{{name: {name}, value: {value}}}" for name, value in store.environ.items())
    common = (f"storage.bucket.endpointUrl={store.url}", f"trainer.env=[{credentials}]")
    try:
        check_bucket(load(experiment_path, "storage.bucket.url=s3://team", *common).spec)
        with pytest.raises(ValueError, match=r"^storage\.bucket: there is no bucket s3://missing at .*; create it$"):
            check_bucket(load(experiment_path, "storage.bucket.url=s3://missing", *common).spec)
    finally:
        store.stop()
    with pytest.raises(RunError, match=r"^storage\.bucket: cannot write"):
        check_bucket(load(experiment_path, "storage.bucket.url=s3://team", *common).spec)
