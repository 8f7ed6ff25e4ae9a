"""The files of a run directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from areal_launcher import run_files
from areal_launcher.run_files import RunLock, Stats
from support.local_runs import append, line


def test_growing_statistics_are_read_line_by_line(stats: Stats) -> None:
    assert stats.poll() == []
    append(stats.path, line(1))
    with stats.path.open("a") as file:
        file.write('{"step": 2, "ti')
    assert [one["step"] for one in stats.poll()] == [1]
    with stats.path.open("a") as file:
        file.write('me": 4.0}\n')
    assert [one["step"] for one in stats.poll()] == [2]


def test_statistics_truncated_by_a_resumed_run_are_reread(stats: Stats) -> None:
    append(stats.path, line(1), line(2), line(3))
    stats.poll()
    stats.path.write_text(json.dumps(line(1)) + "\n")
    stats.poll()
    assert [one["step"] for one in stats.lines] == [1]


def test_a_retrained_step_replaces_it_and_all_later_ones(stats: Stats) -> None:
    append(stats.path, line(1), line(2), line(3), line(2, **{"task_reward/avg": 0.9}))
    stats.poll()
    assert [(one["step"], one["task_reward/avg"]) for one in stats.lines] == [(1, 0.1), (2, 0.9)]


def test_a_statistic_is_found_with_or_without_prefix_and_avg() -> None:
    assert run_files.value({"grpo_actor/entropy/avg": 0.5}, "entropy") == 0.5
    assert run_files.value({"task_reward/avg": 0.25}, "task_reward") == 0.25
    assert run_files.value({"eval-rollout/reward": 1}, "eval-rollout/reward") == 1.0
    assert run_files.value({"entropy": None}, "entropy") is None


def test_the_initial_evaluation_is_step_0() -> None:
    lines = [line(1, **{"eval-rollout/reward_initial": 0.3}), line(2, **{"eval-rollout/reward": 0.6})]
    assert run_files.evaluations(lines) == [(0, 0.3), (2, 0.6)]


def test_a_second_launcher_in_a_run_directory_is_refused(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    with pytest.raises(ValueError, match="another grpo run"):
        RunLock(tmp_path)
    assert run_files.launcher_pid(tmp_path) is not None
    lock.release()
    assert run_files.launcher_pid(tmp_path) is None
    RunLock(tmp_path).release()
