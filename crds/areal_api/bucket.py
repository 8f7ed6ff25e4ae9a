"""``spec.storage.bucket``: S3-compatible storage that keeps what must outlive the run's volume."""

from __future__ import annotations

from pydantic import Field

from areal_api.section import CamelSection

URL = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_.-]+)*$"


class BucketSpec(CamelSection):
    """Where the trainer copies recovery checkpoints, checkpoints and results, and resumes from.

    Credentials are those of the trainer's environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in trainer.env, or
    the cloud's identity of trainer.serviceAccountName.
    """

    url: str = Field(
        max_length=1024,
        pattern=URL,
        description="s3://bucket or s3://bucket/prefix; a run has <experiment_name>/<trial_name>/ below it.",
    )
    endpoint_url: str | None = Field(
        None,
        max_length=2048,
        pattern=r"^https?://[^\x00-\x20@]+$",
        description="URL of an S3 server other than AWS's, such as http://minio.storage.svc:9000; null is AWS's.",
    )
    region: str | None = Field(
        None, min_length=1, max_length=64, description="Region; null is AWS_REGION of the environment, if set."
    )
    keep: int = Field(1, ge=1, le=1000, description="Recovery checkpoints to keep in the bucket, the newest ones.")
