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


def test_the_table_has_a_column_for_each_place() -> None:
    local = [places.Measured(10.0, 1.0, 5.0, 8.0), places.Measured(12.0, 0.5, 5.0, 8.0)]
    assert places.table({"local": local, "ray": [places.Measured(20.0, 0.25, 6.0, 9.0)]}) == [
        "| | local | ray |",
        "|---|---|---|",
        "| steps/s | 0.75 (0.50–1.00) | 0.25 |",
        "| command → first step, s | 11.0 (10.0–12.0) | 20.0 |",
        "| killed server → ready again, s | 5.00 (5.00–5.00) | 6.00 |",
        "| killed trainer → next step, s | 8.00 (8.00–8.00) | 9.00 |",
    ]
