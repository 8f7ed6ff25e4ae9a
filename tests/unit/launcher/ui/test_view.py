"""What the page shows of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from areal_api import names
from areal_launcher import run_files
from areal_launcher.catalog import Catalog
from areal_launcher.core.journal import journal_file
from areal_launcher.ui import view
from areal_launcher.ui.table import StatsTable
from support.local_runs import append, line
from support.ui_runs import make_run


def overview(run: Path) -> dict[str, Any]:
    [entry] = Catalog([run]).scan()
    table = StatsTable(run)
    while table.poll():
        pass
    return view.overview(entry, table)


def test_an_empty_run_has_a_row_and_an_overview(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r", steps=1)
    names.stats_file(run).unlink()
    [row] = view.rows(Catalog([tmp_path]))
    assert row["step"] is None
    assert (overview(run)["step"], overview(run)["charts"]) == (0, [])


def test_warnings_and_rollbacks_are_events_at_their_first_step(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r", steps=2, **{"health/drift": 1.0})
    texts = {event["step"]: event["text"] for event in overview(run)["events"]}
    assert texts == {1: "the KL from the policy that generated the samples is high"}


def test_what_the_launcher_reported_is_an_event_at_its_step(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r")
    entries = [{"message": "server-0 was restarted", "step": 2}, {"phase": "training", "step": 2}, {"message": 5}]
    journal_file(run).write_text("".join(json.dumps(entry) + "\n" for entry in entries) + "{damaged")
    assert overview(run)["events"] == [{"step": 2, "kind": "launcher", "text": "server-0 was restarted"}]


def test_texts_are_shortened(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r", summary={"outcome": "failed", "error": "x" * 100_000})
    assert len(overview(run)["reason"]) < 1000


def test_damaged_lines_are_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r")
    with names.stats_file(run).open("a") as file:
        file.write("garbage\n")
    assert overview(run)["problems"] == ["1 damaged lines of stats.jsonl are ignored"]


def test_the_experiment_is_shown_before_the_configuration(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r")
    assert view.configuration(run) == "experiment_name: r\n"
    run_files.experiment_file(run).write_text("kind: GRPOExperiment\n")
    assert view.configuration(run) == "kind: GRPOExperiment\n"


def test_tables_of_runs_that_nobody_looks_at_are_dropped(tmp_path: Path) -> None:
    tables = view.Tables()
    first = tables.of(tmp_path / "first")
    for number in range(view.MAX_TABLES):
        tables.of(tmp_path / str(number))
    assert tables.of(tmp_path / "first") is not first


def test_a_lost_server_is_an_event_and_the_table_has_the_weights_that_each_holds(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r", steps=1, **{"servers/0/version": 1, "servers/0/losses": 0, "servers/1/losses": 0})
    lost = {"servers/0/version": 2.0, "servers/1/version": -1.0, "servers/0/losses": 0.0, "servers/1/losses": 1.0}
    append(names.stats_file(run), line(2, **lost), line(3, **lost))
    servers = [{"name": f"server-{index}", "address": "h:1", "state": "running", "restarts": 0} for index in (0, 1, 2)]
    run_files.state_file(run).write_text(json.dumps({"servers": servers}))
    shown = overview(run)
    assert [(event["step"], event["kind"]) for event in shown["events"]] == [(2, "server")]
    assert shown["events"][0]["text"].startswith("server 1 no longer held the current weights")
    assert [server["weights"] for server in shown["servers"]] == ["v2", "unknown", "–"]
