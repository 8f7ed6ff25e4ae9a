"""``python -m areal_trainer.storage.code put|get FILE SHA256``: packed code that is too large for a ConfigMap.

``grpo run`` puts the archive into the run's bucket, and an init container of the trainer's pods gets it. Its digest is
its name, so archives are written once and shared by runs; whoever unpacks one verifies the digest.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from areal_api import names
from areal_api.bucket import BucketSpec
from areal_api.code import SHA256
from areal_api.termination import failed
from areal_trainer.storage.bucket import Bucket, BucketError

FOLDER = "code"  # below the URL of the bucket, beside the folders of experiments


def put(bucket: Bucket, file: Path, sha256: str) -> None:
    """Upload the archive unless it is there."""
    name = f"{sha256}.tar.gz"
    if name not in bucket.names_below(name):
        bucket.put(file, name)


def get(bucket: Bucket, file: Path, sha256: str) -> None:
    """Download the archive. Raises ``BucketError`` if it is not there."""
    name = f"{sha256}.tar.gz"
    if name not in bucket.names_below(name):
        raise BucketError(f"code.archive: {bucket.url}/{name} does not exist; run grpo run --on kubernetes again")
    bucket.get(name, file)


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """The exit status."""
    action, file, sha256 = arguments
    assert re.fullmatch(SHA256, sha256), sha256
    bucket = Bucket(BucketSpec.model_validate_json(environ[names.BUCKET]), FOLDER)
    try:
        {"put": put, "get": get}[action](bucket, Path(file), sha256)
    except BucketError as error:
        return failed(error, final=True)
    except OSError as error:
        return failed(error, final=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
