"""The results of a run."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from areal_launcher import run_files
from areal_launcher.results_table import result_rows, results_table
from support.local_runs import append, line


def test_results_name_the_checkpoints_volume(tmp_path: Path) -> None:
    where = {"namespace": "team", "name": "exp", "claim": "exp-run", "directory": "/opt/areal/runs/exp/trial0"}
    run_files.write_atomic(run_files.cluster_file(tmp_path), json.dumps(where))
    text = "on the volume claim exp-run of namespace team, below /opt/areal/runs/exp/trial0"
    assert dict(result_rows(tmp_path))["model"] == text


def write_finished(run: Path) -> None:
    (run / "checkpoints" / "epoch0step8").mkdir(parents=True)
    (run / "checkpoints" / "epoch0step8" / "config.json").write_text("{}")
    append(run / "stats.jsonl", line(1), line(2, **{"staleness/avg": 0.75, "eval-rollout/reward": 0.8}))
    summary = {
        "outcome": "finished",
        "steps": 2,
        "reward_first": 0.1,
        "reward_last": 0.2,
        "eval_first": 0.4,
        "eval_last": 0.8,
        "seconds": 65.2,
        "tokens_per_second": 4321.0,
    }
    (run / "summary.json").write_text(json.dumps(summary))


def test_results_show_metrics_and_paths(tmp_path: Path) -> None:
    write_finished(tmp_path)
    rows = dict(result_rows(tmp_path))
    assert rows["outcome"] == "finished"
    assert rows["reward, first → last"] == "0.100 → 0.200"
    assert rows["evaluation, first → last"] == "0.400 → 0.800"
    assert rows["time"] == "1 min 05 s"
    assert rows["tokens per second"] == "4,321"
    assert rows["staleness"] == "1.00 (at most 2)"
    assert rows["model"].endswith("checkpoints/epoch0step8")


def test_an_unfinished_run_has_results_too(tmp_path: Path) -> None:
    append(tmp_path / "stats.jsonl", line(1), line(2))
    output = io.StringIO()
    Console(file=output, width=160).print(results_table(tmp_path))
    assert "0.100 → 0.200" in output.getvalue()
    assert "4 s" in output.getvalue()
