"""Experiments of the benchmark of learning, and what it does with results that exist."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from areal_api.config import GRPOConfig
from benchmarks import learning
from benchmarks.learning_options import Options
from benchmarks.learning_results import Record
from benchmarks.learning_runs import experiment, task_files
from benchmarks.peer import PeerError, PeerTask


def config_of(tmp_path: Path, setting: str, mode: str) -> GRPOConfig:
    """The configuration of a run."""
    content = experiment(task_files("tiny", tmp_path), setting, mode, seed=3, steps=5, run=tmp_path / "e" / "t")
    return GRPOConfig(**content["spec"]["config"])


def test_settings_differ_in_the_treatment_of_stale_samples_alone(tmp_path: Path) -> None:
    ours, theirs = (config_of(tmp_path, setting, "eta2") for setting in ("defaults", "areal"))
    assert ours.max_staleness == theirs.max_staleness == 2
    assert ours.kl_penalty > theirs.kl_penalty == 0.0
    assert theirs.actor.use_decoupled_loss
    keys = {"use_decoupled_loss", "recompute_logprob", "correction", "behav_imp_weight_cap"}
    assert ours.actor.model_dump(exclude=keys) == theirs.actor.model_dump(exclude=keys)
    assert (ours.actor.optimizer.lr, ours.actor.eps_clip, ours.actor.adv_norm) == (5e-4, 0.2, None)


def test_modes_set_the_staleness_bound(tmp_path: Path) -> None:
    bounds = [config_of(tmp_path, "defaults", mode).max_staleness for mode in ("sync", "eta1", "eta2", "eta4")]
    assert bounds == [0, 1, 2, 4]


def test_runs_that_have_a_result_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(task: PeerTask, work: Path) -> Record:
        raise PeerError(f"{task.model.name} cannot be trained here")

    monkeypatch.setitem(learning.PEER_TRAINERS, "trl", unavailable)
    for seed in (1, 2):
        file = tmp_path / "runs" / "tiny" / "defaults-sync" / f"seed{seed}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(Record([1.0] * 4, [0.5 + 0.1 * seed] * 4))))
    options = Options(2, ("tiny",), ("sync",), ("defaults", "areal"), ("trl",), tmp_path)
    [report] = learning.run(small=False, rounds=1, options=options)
    assert "| tiny | defaults | sync | 2 | 0.650 ± 0.635 | 0 | 0 | 0 |  | 1.00 |  |" in report.report()
    assert "| tiny | trl |  | not run: model cannot be trained here |" in (tmp_path / "results.md").read_text()
    assert [cell.get("not_run") for cell in json.loads((tmp_path / "results.json").read_text())][1] is not None
