"""``python -m areal_trainer.storage.check``: whether the run's bucket can be used, before anything else starts.

Exit status 2 and one line that begins with ``error:`` say that it cannot, 1 that another attempt may succeed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from areal_api import names
from areal_trainer.storage.bucket import BucketError, bucket_of


def main(environ: dict[str, str], experiment: str, trial: str) -> int:
    """The exit status."""
    bucket = bucket_of(environ, experiment=experiment, trial=trial)
    assert bucket is not None, f"{names.BUCKET} is not set"
    try:
        bucket.check()
    except BucketError as error:
        return _fail(f"error: {error}", 2)
    except OSError as error:
        return _fail(f"OSError: {error}", 1)
    return 0


def _fail(line: str, status: int) -> int:
    print(line, file=sys.stderr, flush=True)
    log = os.environ.get(names.TERMINATION_LOG)
    if log:
        Path(log).write_text(line, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(dict(os.environ), *sys.argv[1:3]))
