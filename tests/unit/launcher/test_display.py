"""What a person sees of a run."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from areal_launcher import run_files
from areal_launcher.display import (
    LiveDisplay,
    PlainDisplay,
    closing_rows,
    closing_table,
    duration,
    figures,
    seconds_a_step,
    seconds_left,
)
from areal_launcher.run_files import RunLock, Stats


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def line(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "version": step,
        "time": 2.0 * step,
        "task_reward/avg": 0.1 * step,
        "staleness/avg": 1.25,
        "staleness/max": 2,
        "tokens_per_second": 3210.4,
        **more,
    }


def append(path: Path, *lines: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in lines)


@pytest.fixture
def stats(tmp_path: Path) -> Stats:
    return Stats(tmp_path / "stats.jsonl")


def plain(clock: Clock) -> tuple[PlainDisplay, io.StringIO]:
    output = io.StringIO()
    return PlainDisplay(Console(file=output), clock), output


def test_durations_read_as_a_person_says_them() -> None:
    assert [duration(s) for s in (0.4, 48, 125, 11220)] == ["0 s", "48 s", "2 min 05 s", "3 h 07 min"]


def test_stats_that_grow_are_read_line_by_line(stats: Stats) -> None:
    assert stats.poll() == []
    append(stats.path, line(1))
    with stats.path.open("a") as file:
        file.write('{"step": 2, "ti')
    assert [one["step"] for one in stats.poll()] == [1]
    with stats.path.open("a") as file:
        file.write('me": 4.0}\n')
    assert [one["step"] for one in stats.poll()] == [2]


def test_stats_cut_back_by_a_resumed_run_are_read_again(stats: Stats) -> None:
    append(stats.path, line(1), line(2), line(3))
    stats.poll()
    stats.path.write_text(json.dumps(line(1)) + "\n")
    stats.poll()
    assert [one["step"] for one in stats.lines] == [1]


def test_a_step_trained_again_replaces_it_and_those_after_it(stats: Stats) -> None:
    append(stats.path, line(1), line(2), line(3), line(2, **{"task_reward/avg": 0.9}))
    stats.poll()
    assert [(one["step"], one["task_reward/avg"]) for one in stats.lines] == [(1, 0.1), (2, 0.9)]


def test_a_statistic_is_found_with_or_without_prefix_and_avg() -> None:
    assert run_files.value({"grpo_actor/entropy/avg": 0.5}, "entropy") == 0.5
    assert run_files.value({"task_reward/avg": 0.25}, "task_reward") == 0.25
    assert run_files.value({"eval-rollout/reward": 1}, "eval-rollout/reward") == 1.0
    assert run_files.value({"entropy": None}, "entropy") is None


def test_the_evaluation_before_the_first_step_counts_as_step_0() -> None:
    lines = [line(1, **{"eval-rollout/reward_initial": 0.3}), line(2, **{"eval-rollout/reward": 0.6})]
    assert run_files.evaluations(lines) == [(0, 0.3), (2, 0.6)]


def test_time_left_is_the_pace_of_the_last_steps_times_the_steps_to_come(stats: Stats) -> None:
    append(stats.path, *(line(step) for step in range(1, 6)))
    stats.poll()
    assert seconds_a_step(stats) == pytest.approx(2.0)
    assert seconds_left(stats, 20) == pytest.approx(30.0)
    assert seconds_left(stats, None) is None


def test_time_left_is_unknown_after_one_step(stats: Stats) -> None:
    append(stats.path, line(1))
    stats.poll()
    assert seconds_left(stats, 20) is None


def test_the_newest_evaluation_stays_in_sight(stats: Stats) -> None:
    append(stats.path, line(1, **{"eval-rollout/reward": 0.5}), line(2))
    stats.poll()
    assert dict(figures(stats, 4)) == {
        "step": "2/4",
        "reward": "0.200",
        "eval": "0.500",
        "tok/s": "3,210",
        "staleness": "1.25",
        "left": "4 s",
    }


def test_without_a_terminal_a_step_is_a_line_at_most_every_second(stats: Stats) -> None:
    clock = Clock()
    display, output = plain(clock)
    with display:
        display.phase("training")
        for step in (1, 2, 3):
            append(stats.path, line(step))
            stats.poll()
            display.update(stats, 10)
            clock.now += 0.4
        clock.now += 0.4
        display.update(stats, 10)
        append(stats.path, line(4))
        stats.poll()
        display.update(stats, 10)
    shown = [text.split("  ")[0] for text in output.getvalue().splitlines()]
    assert shown == ["training", "step 1/10", "step 3/10", "step 4/10"]


def test_without_a_terminal_a_phase_is_told_once(stats: Stats) -> None:
    display, output = plain(Clock())
    with display:
        display.phase("starting servers, 0 of 1 ready")
        display.phase("starting servers, 0 of 1 ready")
        display.message("server-0 ready after 16 s")
    assert output.getvalue().splitlines() == ["starting servers, 0 of 1 ready", "server-0 ready after 16 s"]


def test_a_terminal_shows_phase_bar_and_figures(stats: Stats) -> None:
    output = io.StringIO()
    append(stats.path, line(3))
    stats.poll()
    with LiveDisplay(Console(file=output, force_terminal=True, width=120), Clock()) as display:
        display.phase("training")
        display.update(stats, 12)
    text = output.getvalue()
    assert "training" in text
    assert "3/12" in text
    assert "━" in text


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


def test_the_closing_table_tells_what_came_out_and_where_it_is(tmp_path: Path) -> None:
    write_finished(tmp_path)
    rows = dict(closing_rows(tmp_path))
    assert rows["outcome"] == "finished"
    assert rows["reward, first → last"] == "0.100 → 0.200"
    assert rows["evaluation, first → last"] == "0.400 → 0.800"
    assert rows["time"] == "1 min 05 s"
    assert rows["tokens per second"] == "4,321"
    assert rows["staleness"] == "1.00 (at most 2)"
    assert rows["model"].endswith("checkpoints/epoch0step8")


def test_an_unfinished_run_has_a_closing_table_too(tmp_path: Path) -> None:
    append(tmp_path / "stats.jsonl", line(1), line(2))
    output = io.StringIO()
    Console(file=output, width=160).print(closing_table(tmp_path))
    assert "0.100 → 0.200" in output.getvalue()
    assert "4 s" in output.getvalue()


def test_a_second_launcher_in_a_run_directory_is_refused(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    with pytest.raises(ValueError, match="another grpo run"):
        RunLock(tmp_path)
    assert run_files.launcher_pid(tmp_path) is not None
    lock.release()
    assert run_files.launcher_pid(tmp_path) is None
    RunLock(tmp_path).release()
