"""Claims the directory of a run and writes its files, before anything starts."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from areal_api import names
from areal_api.experiment import GRPOExperiment
from areal_api.render import config_yaml, experiment_yaml
from areal_launcher.core.resume import check_resume
from areal_launcher.run_files import RunLock, cluster_file, experiment_file, write_atomic


@contextlib.contextmanager
def claimed_run(experiment: GRPOExperiment, run: Path) -> Iterator[Path]:
    """Lock the run directory and write its files while the context is entered; yields the path of the API key.

    Raises ``ValueError`` if another launcher uses the directory or its checkpoints are of another configuration.
    """
    with contextlib.ExitStack() as stack:
        lock = RunLock(run)
        stack.callback(lock.release)
        check_resume(experiment.spec.config, run)
        cluster_file(run).unlink(missing_ok=True)  # the directory is no longer a copy of results from Kubernetes
        write_atomic(names.config_file(run), config_yaml(experiment.spec.config))
        write_atomic(experiment_file(run), experiment_yaml(experiment))
        key_file = write_key(run)
        stack.callback(key_file.unlink, missing_ok=True)
        yield key_file


def write_key(run: Path) -> Path:
    """Write a new API key of the run to a file that only its owner can read."""
    path = run.absolute() / "api-key"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(32))
    return path
