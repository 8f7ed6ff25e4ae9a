"""The files of a run directory."""

from __future__ import annotations

import fcntl
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_launcher import cli, run_files
from areal_launcher.display import step_metrics
from areal_launcher.plot import series
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


values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=2)
)
lines_of_a_stranger = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.dictionaries(st.sampled_from(["step", "time", "task_reward/avg", "staleness", "seq_len"]), values).map(
            lambda line: json.dumps(line).encode()
        ),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(
    lines=lines_of_a_stranger,
    summary=st.one_of(
        st.binary(max_size=30),
        st.dictionaries(
            st.sampled_from(["outcome", "steps", "seconds", "reward_first", "reward_last", "tokens_per_second"]), values
        ).map(lambda summary: json.dumps(summary).encode()),
    ),
    lock=st.binary(max_size=40),
    state=st.one_of(st.binary(max_size=30), st.just(b'{"servers": [1, {"name": "\x1b[2J"}]}')),
)
def test_a_run_directory_of_a_stranger_is_shown_without_a_crash(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], summary: bytes, lock: bytes, state: bytes
) -> None:
    run = tmp_path_factory.mktemp("run")
    for name, content in {
        "config.yaml": b"",
        "stats.jsonl": b"\n".join([*lines, b""]),
        "summary.json": summary,
        "local.json": state,
        "cluster.json": summary,
        "launcher.lock": lock,
    }.items():
        (run / name).write_bytes(content)
    assert cli.main(["status", str(run)]) == 0
    with (run / "launcher.lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert cli.main(["status", str(run)]) == 0
    stats = run_files.read_stats(run)
    assert all(type(line["step"]) is int and math.isfinite(line["time"]) for line in stats.lines)
    step_metrics(stats, 10)
    series(stats.lines, "task_reward")


def test_hostile_statistics_can_be_plotted(tmp_path: Path) -> None:
    run = tmp_path / "a$b$^_{" / "[/red]"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    huge = {"task_reward": 1e308, "staleness": -1e308, "seq_len": 1e300, "prompt_len": 0, "eval-rollout/reward": 1e300}
    append(run / "stats.jsonl", {"step": 2**52, "time": 1e308, **huge}, {"step": 2**53, "time": -5, **huge})
    assert cli.main(["plot", str(run)]) == 0
    assert cli.main(["status", str(run)]) == 0


def test_a_long_stats_file_is_read_from_its_end_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_files, "MAX_POLL_BYTES", 4000)
    append(tmp_path / "stats.jsonl", *(line(step) for step in range(1, 2000)))
    lines = run_files.read_stats(tmp_path).lines
    assert lines[-1]["step"] == 1999
    assert 5 < len(lines) < 100


def test_a_line_without_an_end_does_not_stop_the_lines_after_it(tmp_path: Path, stats: Stats) -> None:
    with stats.path.open("w") as file:
        file.write("x" * (run_files.MAX_LINE_BYTES + 10))
    assert stats.poll() == []
    append(stats.path, {"x": 0}, line(1))
    assert [one["step"] for one in stats.poll()] == [1]


@pytest.mark.parametrize("name", ["stats.jsonl", "summary.json", "local.json", "launcher.lock", "config.yaml"])
def test_a_fifo_in_a_run_directory_never_blocks(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.yaml").touch()
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    assert cli.main(["status", str(tmp_path)]) in (0, 2)
    assert cli.main(["plot", str(tmp_path)]) == 2


def test_a_stale_lock_file_with_the_pid_of_another_process_is_not_a_running_run(tmp_path: Path) -> None:
    (tmp_path / "launcher.lock").write_text(str(os.getppid()))
    assert run_files.launcher_pid(tmp_path) is None
    RunLock(tmp_path).release()


def test_a_lock_that_cannot_be_opened_is_reported_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "launcher.lock").mkdir()
    with pytest.raises(ValueError, match=r"launcher.lock: Is a directory; remove it"):
        RunLock(tmp_path)


def test_a_link_planted_under_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("untouched")
    (tmp_path / ".summary.json.part").symlink_to(tmp_path / "victim")
    run_files.write_atomic(tmp_path / "summary.json", "{}")
    assert (tmp_path / "victim").read_text() == "untouched"
    assert (tmp_path / "summary.json").read_text() == "{}"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_modes_that_the_umask_gives(tmp_path: Path, umask: int) -> None:
    previous = os.umask(umask)
    try:
        run_files.write_atomic(tmp_path / "x", "")
    finally:
        os.umask(previous)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~umask
