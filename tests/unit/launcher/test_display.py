"""Progress displays."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from areal_launcher.display import (
    LiveDisplay,
    PlainDisplay,
    format_duration,
    seconds_left,
    seconds_per_step,
    step_metrics,
)
from areal_launcher.run_files import Stats
from support.local_runs import append, line


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def plain(clock: Clock) -> tuple[PlainDisplay, io.StringIO]:
    output = io.StringIO()
    return PlainDisplay(Console(file=output), clock), output


def test_durations_are_formatted_by_magnitude() -> None:
    assert [format_duration(s) for s in (0.4, 48, 125, 11220)] == ["0 s", "48 s", "2 min 05 s", "3 h 07 min"]


def test_time_left_is_the_recent_step_time_times_the_remaining_steps(stats: Stats) -> None:
    append(stats.path, *(line(step) for step in range(1, 6)))
    stats.poll()
    assert seconds_per_step(stats) == pytest.approx(2.0)
    assert seconds_left(stats, 20) == pytest.approx(30.0)
    assert seconds_left(stats, None) is None


def test_time_left_is_unknown_after_one_step(stats: Stats) -> None:
    append(stats.path, line(1))
    stats.poll()
    assert seconds_left(stats, 20) is None


def test_the_latest_evaluation_stays_visible(stats: Stats) -> None:
    append(stats.path, line(1, **{"eval-rollout/reward": 0.5}), line(2))
    stats.poll()
    assert dict(step_metrics(stats, 4)) == {
        "step": "2/4",
        "reward": "0.200",
        "eval": "0.500",
        "tok/s": "3,210",
        "staleness": "1.25",
        "left": "4 s",
    }


def test_without_a_terminal_at_most_one_step_per_second_is_printed(stats: Stats) -> None:
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


def test_without_a_terminal_a_phase_is_printed_once(stats: Stats) -> None:
    display, output = plain(Clock())
    with display:
        display.phase("starting servers, 0 of 1 ready")
        display.phase("starting servers, 0 of 1 ready")
        display.message("server-0 ready after 16 s")
    assert output.getvalue().splitlines() == ["starting servers, 0 of 1 ready", "server-0 ready after 16 s"]


def test_a_terminal_shows_phase_progress_bar_and_metrics(stats: Stats) -> None:
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


def test_the_step_time_is_right_when_steps_are_missing(tmp_path: Path) -> None:
    stats = Stats(tmp_path / "none")
    for step, time_s in ((2, 10.0), (5, 16.0), (8, 22.0)):
        stats.add({"step": step, "time": time_s})
    assert seconds_per_step(stats) == pytest.approx(2.0)


def test_each_change_of_the_policys_health_is_reported_once(stats: Stats) -> None:
    display, output = plain(Clock())
    drift, collapse = {"health/drift": 1.0}, {"health/declined": 1.0, "health/collapsed": 1.0}
    append(stats.path, line(1), line(2, **drift), line(3, **drift), line(4, **collapse))
    for _ in range(2):
        stats.poll()
        display.update(stats, 9)
    found = [text for text in output.getvalue().splitlines() if "policy" in text]
    assert found == [
        "step 2: warning: the KL from the policy that generated the samples is high",
        "step 4: the policy collapsed: the reward is far below its best",
    ]
    append(stats.path, line(2, **{"health/rollbacks": 1.0}))
    stats.poll()
    display.update(stats, 9)
    assert "the policy collapsed and was rolled back; training continues with step 2" in output.getvalue()
