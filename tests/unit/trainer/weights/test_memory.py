"""The memory of publishing is bounded by the bucket size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import publishing_memory
from support.publishing_memory import BUCKET_BYTES, MODEL_BYTES


@pytest.mark.parametrize("mode", ["disk", "distributed"])
def test_publishing_uses_a_few_buckets_of_memory_for_any_model_size(mode: str, tmp_path: Path) -> None:
    script = Path(publishing_memory.__file__)
    # Return freed memory to the system; the C library would keep some per thread.
    environment = {"PYTHONPATH": str(script.parent.parent), "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    done = subprocess.run(
        [sys.executable, str(script), mode, str(tmp_path)],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # The bucket being sent, and the next one with its tensors; far less than the model.
    assert BUCKET_BYTES < int(done.stdout) < 5 * BUCKET_BYTES <= MODEL_BYTES / 2
