"""Samples fetched from a cluster; tests/control_plane reads them through the log of a pod."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from areal_launcher.cluster import fetch_samples, fetched_samples
from areal_launcher.cluster.fetch_results import ResultsSource
from areal_launcher.cluster.fetch_samples import fetch_steps, sizes_of
from areal_launcher.cluster.fetched_samples import FetchedSamples
from areal_launcher.cluster.in_pod import print_files
from areal_launcher.errors import RunError

SOURCE = ResultsSource("team", "exp", "uid", "exp-run", "/data/run", {}, None)
CLUSTER: Any = None


@pytest.fixture
def pods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The files that each pod was asked for; the pods' command runs on ``tmp_path``."""
    asked: list[list[str]] = []

    def read_archive(cluster: Any, source: ResultsSource, files: list[str]) -> bytes:
        asked.append(list(files))
        return print_files.decoded(print_files.encoded(print_files.archive(str(tmp_path), list(files))))

    monkeypatch.setattr(fetch_samples, "read_archive", read_archive)
    monkeypatch.setattr(fetched_samples, "source_of", lambda cluster, body: SOURCE)
    (tmp_path / "rollouts").mkdir()
    for step in (1, 2, 10):
        (tmp_path / "rollouts" / f"step{step}.parquet").write_bytes(bytes([step]) * 100 * step)
    (tmp_path / "rollouts" / "other.txt").write_text("x")
    return asked


def test_the_steps_of_a_run_are_listed_with_their_sizes(pods: list[list[str]]) -> None:
    assert sizes_of(CLUSTER, SOURCE, "rollouts") == {1: 100, 2: 200, 10: 1000}
    assert sizes_of(CLUSTER, SOURCE, "evaluations") == {}


def test_a_pod_prints_as_many_steps_as_fit_into_its_log(
    pods: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_samples, "MAX_BYTES", 1000)
    sizes = sizes_of(CLUSTER, SOURCE, "rollouts")
    target = tmp_path / "here"
    fetch_steps(CLUSTER, SOURCE, "rollouts", [1, 2, 10, 2], target, sizes=sizes)
    assert pods[1:] == [["rollouts/step1.parquet", "rollouts/step2.parquet"], ["rollouts/step10.parquet"]]
    assert (target / "step2.parquet").read_bytes() == b"\x02" * 200


class Pods:
    """A cluster whose pods run and execute ``cat`` on ``root`` in place of the run's directory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.names: list[str] = []
        self.cut = 10**9

    def create(self, body: Any, namespace: str) -> Any:
        assert body["spec"]["activeDeadlineSeconds"] == 600
        self.names.append("reader")
        return {"metadata": {"name": "reader"}}

    def get(self, kind: str, namespace: str, name: str) -> Any:
        return {"status": {"phase": "Running"}}

    def exec(self, namespace: str, pod: str, container: str, command: list[str]) -> Any:
        assert command[0] == "cat"
        data = (self._root / command[1].removeprefix("/data/run/")).read_bytes()[: self.cut]
        yield from (data[at : at + 300] for at in range(0, len(data), 300))

    def delete(self, kind: str, namespace: str, name: str, *, grace_s: int) -> None:
        self.names.remove(name)


def test_a_step_that_no_log_holds_is_read_by_a_command_in_a_pod(
    pods: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_samples, "MAX_BYTES", 999)
    monkeypatch.setattr(
        fetch_samples, "reader_pod", lambda *_, deadline_s: {"spec": {"activeDeadlineSeconds": deadline_s}}
    )
    cluster, target = Pods(tmp_path), tmp_path / "here"
    fetch_steps(cluster, SOURCE, "rollouts", [1, 10], target, sizes={1: 100, 10: 1000})  # type: ignore[arg-type]
    assert (target / "step10.parquet").read_bytes() == b"\x0a" * 1000
    assert (pods, cluster.names) == ([["rollouts/step1.parquet"]], [])
    cluster.cut = 500
    with pytest.raises(RunError, match=r"step10\.parquet arrived with 500 of 1000 bytes"):
        fetch_steps(cluster, SOURCE, "rollouts", [10], tmp_path / "cut", sizes={10: 1000})  # type: ignore[arg-type]
    assert list((tmp_path / "cut").iterdir()) == []
    monkeypatch.setattr(fetch_samples, "MAX_FILE_BYTES", 999)
    with pytest.raises(RunError, match="more than the 999 that are read"):
        fetch_steps(cluster, SOURCE, "rollouts", [10], target, sizes={10: 1000})  # type: ignore[arg-type]
    assert cluster.names == []


def test_a_step_that_is_not_there_is_named(pods: list[list[str]], tmp_path: Path) -> None:
    for sizes, message in (({}, "exp has no samples of step 3"), ({3: 5}, "samples of step 3 were deleted")):
        with pytest.raises(FileNotFoundError, match=message):
            fetch_steps(CLUSTER, SOURCE, "rollouts", [3], tmp_path / "here", sizes=sizes)


def test_the_page_fetches_a_file_once_and_keeps_a_bounded_number(
    pods: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetched_samples, "MAX_BYTES", 1150)
    files = FetchedSamples(CLUSTER)
    assert files.steps("run", {}, "rollouts") == [1, 2, 10]
    for step in (1, 1, 10):
        files.fetch("run", {}, "rollouts", [step])
    folder = files.directory("run") / "rollouts"
    assert sorted(path.name for path in folder.iterdir()) == ["step1.parquet", "step10.parquet"]
    assert len(pods) == 3
    files.fetch("run", {}, "rollouts", [2])
    assert sorted(path.name for path in folder.iterdir()) == ["step2.parquet"]
