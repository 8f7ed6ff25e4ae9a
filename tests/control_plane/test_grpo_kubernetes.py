"""``grpo --on kubernetes`` against a real API server and the real operator; nodes are played."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from areal_launcher import cli
from cluster.control_plane import ControlPlane
from support.experiments import Experiment
from support.fake_kubelet import end
from support.kube_api import Api, eventually
from support.node_logs import NodeLogs, Readers
from support.operator_process import OperatorProcess

STEPS = [{"step": n, "time": 2.0 * n, "task_reward/avg": 0.3 * n, "staleness/avg": 1.0} for n in (1, 2, 3)]


@pytest.fixture(scope="module")
def node(plane: ControlPlane, api: Api, kubelet: object) -> Iterator[NodeLogs]:
    """Nodes that give out logs."""
    node = NodeLogs(plane.ca, plane.ca.with_suffix(".key"))
    node.announce(api)
    yield node
    node.stop()


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """What a run has written in its pods."""
    folder = tmp_path / "volume"
    folder.mkdir()
    (folder / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in STEPS))
    (folder / "summary.json").write_text(json.dumps({"outcome": "succeeded", "steps": 3}))
    (folder / "config.yaml").write_text("seed: 1\n")
    (folder / "secret").write_text("not asked for")
    return folder


@pytest.fixture
def grpo(plane: ControlPlane, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Grpo:
    monkeypatch.chdir(tmp_path)
    return Grpo(plane, experiment, tmp_path)


class Grpo:
    """The command, in a folder of its own, with an experiment.yaml."""

    def __init__(self, plane: ControlPlane, experiment: Experiment, folder: Path) -> None:
        self.kubeconfig = str(plane.kubeconfig())
        self.experiment = experiment
        self.path = folder / "experiment.yaml"
        self.results = folder / "results"

    @property
    def place(self) -> list[str]:
        return ["--on", "kubernetes", "--kubeconfig", self.kubeconfig, "--namespace", self.experiment.namespace.name]

    def write(self, **changes: Any) -> None:
        """The experiment as a file; ``__`` in names of changes stands for a dot."""
        self.experiment.changes |= {key.replace("__", "."): value for key, value in changes.items()}
        self.path.write_text(yaml.safe_dump(self.experiment.body()))

    def run(self, *more: str) -> int:
        return cli.main(["run", str(self.path), *self.place, "--results", str(self.results), *more])

    def start(self, *more: str) -> subprocess.Popen[str]:
        """``grpo run`` as a process of its own."""
        command = [sys.executable, "-m", "areal_launcher.cli", "run", str(self.path), *self.place, *more]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_run_is_applied_followed_and_its_results_are_fetched(
    grpo: Grpo, node: NodeLogs, volume: Path, operator: OperatorProcess, capfd: pytest.CaptureFixture[str]
) -> None:
    namespace = grpo.experiment.namespace
    namespace.behave("trainer", end(0))
    grpo.write()
    with Readers(namespace.api, node, namespace.name, volume) as readers:
        assert grpo.run() == 0
    output = capfd.readouterr().out
    assert "experiment exp made: context c" in output
    assert "0.300 → 0.900" in output
    assert "on the volume claim exp-run" in output
    assert sorted(path.name for path in grpo.results.iterdir()) == [
        "cluster.json",
        "config.yaml",
        "experiment.yaml",
        "reward.png",
        "stats.jsonl",
        "summary.json",
    ]
    assert len(readers.pods) == 1
    eventually(lambda: not namespace.api.list("Pod", namespace.name, "app.kubernetes.io/managed-by=grpo"), "no reader")
    assert cli.main(["status", str(grpo.results)]) == 0
    assert cli.main(["plot", str(grpo.results)]) == 0
    assert cli.main(["eval", str(grpo.results)]) == 2
    assert "has no checkpoint here, they are on the volume claim exp-run" in capfd.readouterr().err
