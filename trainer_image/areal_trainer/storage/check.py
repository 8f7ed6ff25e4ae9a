"""``python -m areal_trainer.storage.check``: whether the run's bucket can be used, before anything else starts.

Exit status 2 and one line that begins with ``error:`` say that it cannot, 1 that another attempt may succeed.
"""

from __future__ import annotations

import os
import sys

from areal_api import names
from areal_api.termination import failed
from areal_trainer.storage.bucket import BucketError, bucket_of


def main(environ: dict[str, str], experiment: str, trial: str) -> int:
    """The exit status."""
    bucket = bucket_of(environ, experiment=experiment, trial=trial)
    assert bucket is not None, f"{names.BUCKET} is not set"
    try:
        bucket.check()
    except BucketError as error:
        return failed(error, final=True)
    except OSError as error:
        return failed(error, final=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(dict(os.environ), *sys.argv[1:3]))
