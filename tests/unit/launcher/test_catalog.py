"""Finding runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_launcher import catalog
from areal_launcher.catalog import Catalog
from support.ui_runs import make_run


def test_runs_are_found_below_folders_and_by_themselves(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "tiny/first")
    make_run(tmp_path / "runs", "tiny/second")
    alone = make_run(tmp_path, "elsewhere/third")
    found = Catalog([tmp_path / "runs", alone]).scan()
    assert [entry.name for entry in found] == ["third", "tiny/first", "tiny/second"]


def test_a_run_that_was_deleted_is_not_found(tmp_path: Path) -> None:
    run = make_run(tmp_path, "tiny/first")
    found = Catalog([tmp_path])
    [entry] = found.scan()
    for file in run.iterdir():
        file.unlink()
    assert found.find(entry.identifier) is None


def test_a_run_that_began_later_is_found_by_its_identifier(tmp_path: Path) -> None:
    make_run(tmp_path, "tiny/first")
    found = Catalog([tmp_path])
    [entry] = found.scan()
    assert Catalog([tmp_path]).find(entry.identifier) == entry


def test_a_link_to_a_parent_does_not_loop(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/up").symlink_to(tmp_path)
    make_run(tmp_path, "tiny/first")
    assert len(Catalog([tmp_path]).scan()) == 1


def test_files_of_a_run_are_not_searched_for_runs(tmp_path: Path) -> None:
    run = make_run(tmp_path, "tiny/first")
    make_run(run, "rollouts/inner")
    assert [entry.path for entry in Catalog([tmp_path]).scan()] == [run]


def test_the_search_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        make_run(tmp_path, f"run{number}", steps=1)
    monkeypatch.setattr(catalog, "MAX_RUNS", 7)
    assert len(Catalog([tmp_path]).scan()) == 7
    monkeypatch.setattr(catalog, "MAX_FOLDERS", 5)
    assert len(Catalog([tmp_path]).scan()) <= 5


def test_a_run_deep_below_the_folder_is_not_searched(tmp_path: Path) -> None:
    make_run(tmp_path, "a/b/c/d/run")
    assert Catalog([tmp_path]).scan() == []


def test_the_default_is_the_folder_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert catalog.default_roots() == [tmp_path]
    run = make_run(tmp_path, "runs/tiny/first")
    assert catalog.default_roots() == [tmp_path / "runs"]
    monkeypatch.chdir(run)
    assert catalog.default_roots() == [run]
