"""The results of a run."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

from rich.console import Console

from areal_launcher import run_files
from areal_launcher.results_table import last_checkpoint, result_rows, results_table
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


def test_the_last_checkpoint_is_the_one_of_the_last_step(tmp_path: Path) -> None:
    for at, name in [(1000, "epoch1step10"), (9000, "epoch0step9"), (9000, ".epoch2step20"), (9000, "epoch3step30")]:
        place = tmp_path / "checkpoints" / name
        place.mkdir(parents=True)
        if "30" not in name:  # just begun
            (place / "config.json").touch()
        os.utime(place, (at, at))
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoints" / "epoch1step10")


def test_markup_in_a_path_or_file_is_shown_as_text(tmp_path: Path) -> None:
    run = tmp_path / "[/red]" / "[bold"
    (run / "logs").mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps({"outcome": "[/] \x1b[2J", "reward_first": "x", "seconds": 1e300}))
    output = io.StringIO()
    Console(file=output, width=200).print(results_table(run))
    assert "[/red]" in output.getvalue()
    assert "\x1b" not in output.getvalue()


def test_damage_is_shown_as_a_warning(tmp_path: Path) -> None:
    (tmp_path / "stats.jsonl").write_text("nonsense\n")
    (tmp_path / "summary.json").write_text("{")
    warning = dict(result_rows(tmp_path))["warning"]
    assert "summary.json is not valid JSON" in warning
    assert "stats.jsonl has 1 damaged lines" in warning
