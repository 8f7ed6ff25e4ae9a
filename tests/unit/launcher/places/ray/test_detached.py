"""Detached runs: recognising the driver, following it through the run directory, and reporting how it ended."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from areal_api.experiment import GRPOExperiment
from areal_api.load import load_experiment
from areal_api.render import experiment_yaml
from areal_launcher.console import console_for
from areal_launcher.core.journal import Journal
from areal_launcher.display import display_for
from areal_launcher.errors import RunError
from areal_launcher.places.ray import detached
from areal_launcher.places.ray.detached import (
    Follower,
    early_failure,
    follow,
    is_detached,
    marker_file,
    require_same,
    start_driver,
    write_marker,
)
from areal_launcher.run_files import RunLock, experiment_file, request_stop

TINY = Path(__file__).parents[5] / "examples" / "tiny" / "experiment.yaml"

DRIVER = """
import sys, time
from areal_launcher import run_files
from areal_launcher.errors import RunError
from areal_launcher.places.ray import driver
def connect(address):
    if address == "nowhere:1":
        raise ValueError("--address: no Ray cluster at nowhere:1")
    return address
def execute(experiment, *, run, key_file, port, display):
    if port == 1:
        raise RunError("no room")
    display.phase("training")
    while run_files.take_stop_request(run) is None:
        time.sleep(0.02)
    return 143
driver.connect, driver.execute = connect, execute
given = driver.arguments()
sys.exit(driver.main(given.run, given.experiment, address=given.address, port=given.port))
"""


@pytest.fixture
def start(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], int]:
    """Starts a real driver process, whose connection and run are stand-ins: port 1 finds no room."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "stand_in_driver.py").write_text(DRIVER)
    monkeypatch.setattr(detached, "DRIVER", "stand_in_driver")
    monkeypatch.setenv("PYTHONPATH", f"{modules}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    experiment = load_experiment(TINY)
    return lambda address, port: start_driver(experiment, run, address=address, port=port, console=console_for())


def test_a_driver_continues_after_its_start_until_it_is_stopped(run: Path, start: Callable[[str, int], int]) -> None:
    assert start("10.0.0.1:6379", 31000) == 0
    assert is_detached(run)
    require_same(load_experiment(TINY), run)
    assert not list(run.glob(".experiment-*"))
    request_stop(run, now=False)
    assert follow(run, console_for()) == 143
    assert not is_detached(run)


def test_a_driver_that_cannot_connect_or_place_the_run_is_reported_by_its_start(
    run: Path, start: Callable[[str, int], int]
) -> None:
    with pytest.raises(ValueError, match=r"^--address: no Ray cluster at nowhere:1$"):
        start("nowhere:1", 31000)
    with pytest.raises(RunError, match="no room"):
        start("10.0.0.1:6379", 1)
    assert not is_detached(run)
    assert not list(run.glob(".experiment-*"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def directory(run: Path) -> None:
    run.mkdir()


@pytest.fixture
def claimed(run: Path) -> Iterator[RunLock]:
    """The run directory, held by a detached driver (this process)."""
    lock = RunLock(run)
    write_marker(run, 0)
    yield lock
    lock.release()


def test_only_a_directory_that_a_detached_driver_holds_is_detached(run: Path) -> None:
    assert not is_detached(run)
    lock = RunLock(run)
    assert not is_detached(run)  # held by a grpo run with a terminal
    write_marker(run, 0)
    assert is_detached(run)
    lock.release()
    assert not is_detached(run)  # its driver has ended


@pytest.mark.parametrize("text", ["", "[]", '{"pid": "1"}', '{"pid": -5}', "x" * 100])
def test_a_damaged_marker_is_no_detached_run(run: Path, claimed: RunLock, text: str) -> None:
    marker_file(run).write_text(text)
    assert not is_detached(run)


def test_a_driver_is_followed_to_its_end_from_its_own_part_of_the_journal(
    run: Path, claimed: RunLock, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = Journal(run)
    earlier.message("of an earlier start")
    earlier.end(3)
    write_marker(run, (run / "launcher.jsonl").stat().st_size)
    journal = Journal(run)
    journal.phase("training")
    journal.message("server-0 ready")
    journal.end(0)
    assert follow(run, console_for()) == 0
    output = capsys.readouterr().out
    assert "server-0 ready" in output
    assert "of an earlier start" not in output


def test_a_run_is_placed_once_it_has_a_phase(run: Path, claimed: RunLock) -> None:
    journal, follower = Journal(run), Follower(run, offset=0)
    with display_for(Console()) as display:
        assert not follower.poll(display)
        journal.message("connected to the Ray cluster at 10.0.0.1:6379")
        assert not follower.poll(display)
        assert not follower.placed
        journal.phase("waiting for resources")
        assert not follower.poll(display)
        assert follower.placed


def test_the_error_of_the_run_is_raised(run: Path, claimed: RunLock) -> None:
    Journal(run).fail(RunError("the trainer failed", lines=["Traceback"], status=9))
    with pytest.raises(RunError, match="the trainer failed") as caught:
        follow(run, console_for())
    assert (caught.value.status, caught.value.lines) == (9, ["Traceback"])


def test_a_driver_that_was_killed_is_reported(run: Path, claimed: RunLock) -> None:
    Journal(run).phase("training")
    follower = Follower(run, offset=0)
    with display_for(Console()) as display:
        assert not follower.poll(display)
        claimed.release()
        assert follower.poll(display)
    assert "the driver of the run was killed; run the same command to continue" in str(follower.outcome)


@pytest.mark.parametrize("status", [1, 2])
def test_what_a_driver_printed_before_it_had_a_journal_is_the_error(tmp_path: Path, status: int) -> None:
    output = tmp_path / "driver.log"
    output.write_text("of an earlier driver\n--address: no Ray cluster at host:1\n")
    error = early_failure(output, len("of an earlier driver\n"), status)
    if status == 2:  # a mistake of the user
        assert isinstance(error, ValueError)
        assert str(error) == "--address: no Ray cluster at host:1"
    else:
        assert isinstance(error, RunError)
        assert error.lines == ["--address: no Ray cluster at host:1"]


def test_another_configuration_does_not_follow_the_run(run: Path) -> None:
    def tiny(*overrides: str) -> GRPOExperiment:
        return load_experiment(TINY, list(overrides))

    experiment_file(run).write_text(experiment_yaml(tiny()))
    require_same(tiny(), run)
    with pytest.raises(ValueError, match=r"a detached run uses .* with another configuration"):
        require_same(tiny("servers.replicas=2"), run)
