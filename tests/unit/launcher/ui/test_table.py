"""Statistics as columns."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_api import names
from areal_launcher.run_files import Stats, value
from areal_launcher.ui import table as table_module
from areal_launcher.ui.table import StatsTable
from support.local_runs import append, line

EVERYTHING = {"first": 0, "last": 2**53, "limit": 10_000}


def table_of(run: Path, *lines: dict[str, float | None]) -> StatsTable:
    append(names.stats_file(run), *lines)
    table = StatsTable(run)
    while table.poll():
        pass
    return table


def test_columns_have_the_names_that_people_know(tmp_path: Path) -> None:
    table = table_of(tmp_path, line(1, **{"grpo_actor/entropy/avg": 0.5}))
    assert table.points(["entropy"], **EVERYTHING).means == {"entropy": [0.5]}


def test_a_step_without_a_statistic_has_a_gap(tmp_path: Path) -> None:
    table = table_of(tmp_path, line(1), line(2, kl=0.25), line(3))
    assert table.points(["kl"], **EVERYTHING).means["kl"] == [None, 0.25, None]
    assert table.last("kl") == 0.25


def test_a_step_that_is_trained_again_replaces_it_and_all_later_ones(tmp_path: Path) -> None:
    table = table_of(tmp_path, line(1, x=1.0), line(2, x=2.0), line(3, x=3.0), line(2, x=4.0))
    assert table.points(["x"], **EVERYTHING).means["x"] == [1.0, 4.0]
    assert table.points(["x"], **EVERYTHING).steps == [1, 2]
    assert table.changes == 1


def test_a_file_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    table = table_of(tmp_path, line(1, x=1.0), line(2, x=2.0))
    names.stats_file(tmp_path).write_text(json.dumps(line(1, x=5.0)) + "\n")
    table.poll()
    assert table.points(["x"], **EVERYTHING).means["x"] == [5.0]


def test_damaged_and_half_written_lines_are_not_statistics(tmp_path: Path) -> None:
    append(names.stats_file(tmp_path), line(1))
    with names.stats_file(tmp_path).open("ab") as file:
        file.write(b'{"step": 2, "time"\n\xff\xfe\n{"step": 3, "ti')
    table = StatsTable(tmp_path)
    table.poll()
    assert (len(table), table.damaged) == (1, 2)


def test_a_file_that_is_no_file_is_a_problem_and_no_error(tmp_path: Path) -> None:
    names.stats_file(tmp_path).mkdir()
    table = StatsTable(tmp_path)
    assert not table.poll()
    assert "not a regular file" in str(table.problem)


def test_a_deleted_file_leaves_an_empty_table(tmp_path: Path) -> None:
    table = table_of(tmp_path, line(1))
    names.stats_file(tmp_path).unlink()
    table.poll()
    assert (len(table), table.last_step, table.problem) == (0, 0, None)


def test_the_evaluation_before_training_is_step_0(tmp_path: Path) -> None:
    table = table_of(tmp_path, line(1, **{"eval-rollout/reward_initial": 0.3}), line(2, **{"eval-rollout/reward": 0.6}))
    points = table.points(["eval-rollout/reward"], **EVERYTHING)
    assert (points.steps, points.means["eval-rollout/reward"]) == ([0, 1, 2], [0.3, None, 0.6])


def test_a_thinned_series_keeps_every_peak(tmp_path: Path) -> None:
    lines = [line(step, x=9.0 if step == 517 else 1.0) for step in range(1, 1001)]
    points = table_of(tmp_path, *lines).points(["x"], first=0, last=2000, limit=50)
    assert len(points.steps) == 50
    assert points.steps[-1] == 1000
    assert max(high or 0.0 for high in points.high["x"]) == 9.0
    assert min(low or 0.0 for low in points.low["x"]) == 1.0
    assert sum(mean or 0.0 for mean in points.means["x"]) / 50 == pytest.approx(1.008)


def test_a_range_of_steps_is_not_thinned_if_it_is_short(tmp_path: Path) -> None:
    table = table_of(tmp_path, *[line(step, x=float(step)) for step in range(1, 501)])
    points = table.points(["x"], first=100, last=110, limit=50)
    assert points.means["x"] == [float(step) for step in range(100, 111)]
    assert points.low == {}


def test_no_statistic_of_an_endless_number_of_them_is_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "MAX_COLUMNS", 5)
    table = table_of(tmp_path, *[line(step, **{f"x{step}": 1.0}) for step in range(1, 50)])
    assert len(table.statistics) == 5


def test_values_that_no_axis_can_show_are_gaps(tmp_path: Path) -> None:
    table = table_of(tmp_path, line(1, x=1e300), line(2, x=1.0))
    assert table.points(["x"], **EVERYTHING).means["x"] == [None, 1.0]


@settings(max_examples=50, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 20), st.floats(-1e6, 1e6)), max_size=40),
    chunk=st.integers(30, 300),
)
def test_the_table_holds_what_the_statistics_of_other_commands_hold(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, float]], chunk: int
) -> None:
    run = tmp_path_factory.mktemp("run")
    lines = [line(step, x=number) for step, number in steps]
    append(names.stats_file(run), *lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_module, "CHUNK_BYTES", chunk + 200)
        table = StatsTable(run)
        while table.poll():
            pass
    stats = Stats(names.stats_file(run))
    stats.poll()
    points = table.points(["x"], **EVERYTHING)
    assert points.steps == [one["step"] for one in stats.lines]
    assert points.means.get("x", []) == [value(one, "x") for one in stats.lines]
    assert all(math.isfinite(number) for number in points.means.get("x", []) if number is not None)


NUMBERS = st.one_of(
    st.floats(-10, 10),
    st.integers(-3, 3),
    st.sampled_from([1e300, 2**70, -0.0]),
    st.none(),
    st.just("x"),
    st.just(True),
)
NAMES = st.sampled_from(
    ["x", "x/avg", "grpo_actor/x", "y", "seq_len", "seq_len/avg", "prompt_len/avg", "completion_len"]
)


@settings(max_examples=200, deadline=None)
@given(
    blocks=st.lists(
        st.tuples(
            st.lists(NAMES, unique=True, max_size=5),
            st.lists(st.lists(st.one_of(st.floats(-5, 5), NUMBERS), min_size=5, max_size=5), max_size=9),
            st.sampled_from(
                ["", "", "", "garbage", '{"step": 1', '{"time": 1}', '{"step": 2.5, "time": 1}', "[1]", "{}"]
            ),
        ),
        max_size=6,
    ),
    back=st.integers(0, 3),
)
def test_lines_that_are_added_together_make_the_table_that_they_make_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[Any], back: int
) -> None:
    texts, step = [], 0
    for names_of_block, rows, last in blocks:
        for numbers in rows:
            step += 1
            texts.append(
                json.dumps({"step": step, "time": float(step), **dict(zip(names_of_block, numbers, strict=False))})
            )
        texts.append(last)
        step = max(0, step - back)
    run = tmp_path_factory.mktemp("run")
    names.stats_file(run).write_text("".join(f"{text}\n" for text in texts))
    together, one_by_one = StatsTable(run), StatsTable(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_module, "MIN_ROWS", 10**9)
        one_by_one.poll()
    together.poll()
    assert (together.damaged, together.changes, together.last_step) == (
        one_by_one.damaged,
        one_by_one.changes,
        one_by_one.last_step,
    )
    assert together.statistics == one_by_one.statistics
    wanted = together.statistics
    assert together.points(wanted, **EVERYTHING) == one_by_one.points(wanted, **EVERYTHING)
