"""The directory of a run, claimed before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_launcher.core.prepare import claimed_run
from support.local_runs import load


def test_a_claimed_run_has_its_files_and_a_key_that_only_its_owner_reads(experiment_path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with claimed_run(load(experiment_path), run) as key_file:
        assert (key_file.stat().st_mode & 0o777, len(key_file.read_text())) == (0o600, 43)
        assert {"config.yaml", "experiment.yaml"} <= {path.name for path in run.iterdir()}
        with (
            pytest.raises(ValueError, match="another grpo run"),
            claimed_run(load(experiment_path), run),
        ):
            pass
        assert key_file.exists()
    assert not key_file.exists()
