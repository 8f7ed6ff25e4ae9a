"""A real S3 server for these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from areal_api.bucket import BucketSpec
from areal_trainer.storage.bucket import Bucket
from hack.testbed.s3_server import S3Server


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for the session, with the bucket ``team``."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.create_bucket("team")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def spec(s3: S3Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> BucketSpec:
    """A separate prefix for each test, with credentials in the environment."""
    for name, value in s3.environ.items():
        monkeypatch.setenv(name, value)
    url = f"s3://team/{request.node.name.split('[')[0]}"
    return BucketSpec.model_validate({"url": url, "endpointUrl": s3.url, "region": "us-east-1"})


@pytest.fixture
def bucket(spec: BucketSpec) -> Bucket:
    return Bucket(spec, "exp/trial0")
