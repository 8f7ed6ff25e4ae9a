"""The driver of a detached run: errors before and after it has claimed the run directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_api.load import load_experiment
from areal_api.render import experiment_yaml
from areal_launcher.console import console_for
from areal_launcher.core.journal import JournalReader, journal_file
from areal_launcher.display import PlainDisplay
from areal_launcher.errors import RunError
from areal_launcher.places.ray import driver
from areal_launcher.places.ray.detached import is_detached, marker_file
from areal_launcher.run_files import RunLock

TINY = Path(__file__).parents[5] / "examples" / "tiny" / "experiment.yaml"
ADDRESS = "10.0.0.1:6379"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "given.yaml"
    path.write_text(experiment_yaml(load_experiment(TINY)))
    return path


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "connect", lambda address: address)


def ended(run: Path) -> int | RunError | None:
    reader = JournalReader(run)
    reader.replay(PlainDisplay(console_for()))
    return reader.ended


def test_an_address_that_cannot_be_used_is_printed_and_leaves_no_journal(
    file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert driver.main(tmp_path, file, address="head", port=None) == 2
    assert "--address is head; write host:port" in capfd.readouterr().err
    assert not journal_file(tmp_path).exists()
    assert not file.exists()


@pytest.mark.usefixtures("connected")
def test_a_driver_beside_another_run_leaves_its_journal_and_marker_alone(
    file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lock = RunLock(tmp_path)
    assert driver.main(tmp_path, file, address=ADDRESS, port=None) == 2
    lock.release()
    assert "another grpo run" in capfd.readouterr().err
    assert not journal_file(tmp_path).exists()
    assert not marker_file(tmp_path).exists()


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize(
    ("error", "status"), [(RunError("no room", status=1), 1), (ValueError("no such file"), 2), (OSError("disk"), 2)]
)
def test_an_error_of_the_run_is_in_the_journal(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    def execute(*args: object, **settings: object) -> int:
        assert is_detached(tmp_path)
        raise error

    monkeypatch.setattr(driver, "execute", execute)
    assert driver.main(tmp_path, file, address=ADDRESS, port=None) == status
    outcome = ended(tmp_path)
    assert isinstance(outcome, RunError)
    assert (str(outcome), outcome.status) == (str(error), status)
    assert not (tmp_path / "api-key").exists()


@pytest.mark.usefixtures("connected")
def test_the_exit_status_of_the_run_is_in_the_journal(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "execute", lambda *args, **settings: 143)
    assert driver.main(tmp_path, file, address=ADDRESS, port=None) == 143
    assert ended(tmp_path) == 143
    assert not is_detached(tmp_path)
