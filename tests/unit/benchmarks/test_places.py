"""The places that are compared, and what a run directory shows of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from benchmarks import places
from hack.testbed import slurm_cluster


def test_a_place_that_is_not_installed_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_cluster, "missing", lambda: "sbatch not installed")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found, missing = places.installed_places()
    assert [place.name for place in found] == ["local"]
    assert missing == [
        "Slurm is not measured: sbatch not installed",
        "Ray is not measured: it is not installed (make ray)",
    ]
    with pytest.raises(SystemExit, match="places: Slurm is not measured: sbatch not installed; Ray"):
        places.run(small=True, rounds=1)


def test_steps_and_checkpoints_are_read_from_the_run_directory(tmp_path: Path) -> None:
    assert (places.steps_done(tmp_path), places.last_checkpoint(tmp_path)) == (0, 0)
    (tmp_path / "stats.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    for name in ("step2", "step10", "step12.partial"):
        (tmp_path / "recover" / name).mkdir(parents=True)
    assert (places.steps_done(tmp_path), places.last_checkpoint(tmp_path)) == (2, 10)
