"""The picture of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from areal_launcher.plot import plot_run, series, smoothed


def write_run(run: Path, steps: int) -> None:
    run.mkdir(parents=True)
    with (run / "stats.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            line = {
                "step": step,
                "version": step,
                "time": 1.5 * step,
                "task_reward/avg": 1 - 0.7 * math.exp(-step / 20) + 0.05 * math.sin(3.0 * step),
                "seq_len/avg": 60 - 20 * math.exp(-step / 30),
                "prompt_len/avg": 20.0,
                "grpo_actor/entropy/avg": 1.2 * math.exp(-step / 25) + 0.05,
                "staleness/avg": 1 + 0.4 * math.sin(step),
                "staleness/max": 2,
                "tokens_per_second": 3000.0,
            }
            if step % 10 == 0:
                line["eval-rollout/reward"] = 1 - 0.7 * math.exp(-step / 18)
            file.write(json.dumps(line) + "\n")


def test_reward_png_is_written_atomically(tmp_path: Path) -> None:
    run = tmp_path / "words" / "trial0"
    write_run(run, 60)
    path = plot_run(run)
    assert path == run / "reward.png"
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [entry.name for entry in run.iterdir() if entry.name.startswith(".")] == []


def test_one_step_is_enough_to_plot(tmp_path: Path) -> None:
    write_run(tmp_path / "words" / "trial0", 1)
    assert plot_run(tmp_path / "words" / "trial0").exists()


def test_a_run_without_steps_cannot_be_plotted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_run(tmp_path)


def test_a_series_omits_steps_without_the_value() -> None:
    lines = [{"step": 1, "eval-rollout/reward": 0.2}, {"step": 2}, {"step": 3, "eval-rollout/reward": 0.6}]
    assert series(lines, "eval-rollout/reward") == ([1, 3], [0.2, 0.6])


def test_smoothing_is_a_running_mean() -> None:
    assert smoothed([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]
