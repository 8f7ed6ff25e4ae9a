"""``spec.storage.bucket`` in the trainer's pods."""

from __future__ import annotations

import json

from areal_api import names
from support.operator_manifests import env_of, pods

BUCKET = {"url": "s3://team/runs", "endpointUrl": "http://minio:9000"}


def test_the_bucket_is_tried_before_the_trainer_starts_with_its_credentials() -> None:
    secret = {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": {"secretKeyRef": {"name": "s3", "key": "secret"}}}
    (server, trainer) = pods(storage__bucket=BUCKET, trainer={"env": [secret]})
    (_, check) = trainer["initContainers"]
    assert check["command"] == ["python3", "-m", "areal_trainer.storage.check", "case", "trial0"]
    assert secret in check["env"]
    assert json.loads(env_of(trainer)[names.BUCKET]) == BUCKET
    assert names.BUCKET not in str(server)


def test_without_a_bucket_nothing_is_tried() -> None:
    (_, trainer) = pods()
    assert [container["name"] for container in trainer["initContainers"]] == ["prepare"]
    assert names.BUCKET not in env_of(trainer)
