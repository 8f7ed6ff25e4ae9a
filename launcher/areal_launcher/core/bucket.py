"""Checks ``storage.bucket`` with the trainer's interpreter and credentials, before any process of the run starts."""

from __future__ import annotations

import os
import subprocess
import sys

from areal_api import names
from areal_api.commands import bucket_env, check_bucket_command, literal_env
from areal_api.experiment import ExperimentSpec
from areal_launcher.errors import RunError

TIMEOUT_S = 300.0


def check_bucket(spec: ExperimentSpec) -> None:
    """Raise ``ValueError`` for a bucket that cannot be used, ``RunError`` if another attempt may succeed."""
    command = check_bucket_command(spec, python=os.environ.get(names.TRAINER_PYTHON) or sys.executable)
    if command is None:
        return
    env = {**os.environ, **literal_env(spec.trainer.env), **bucket_env(spec)}
    try:
        done = subprocess.run(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(f"storage.bucket: its check took longer than {TIMEOUT_S:g} s") from error
    line = (done.stderr.strip().splitlines() or ["the check of the bucket printed nothing"])[-1]
    if done.returncode == 2:
        raise ValueError(line.removeprefix("error: "))
    if done.returncode:
        raise RunError(line.removeprefix("OSError: "))
