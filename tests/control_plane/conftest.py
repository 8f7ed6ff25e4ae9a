"""Order of the tests on the shared control plane, and what those of ``grpo --on kubernetes`` share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hack.cluster.control_plane import ControlPlane
from hack.testbed.experiments import Experiment
from hack.testbed.kube_api import Api
from support.evaluation_files import answer, write_evaluation
from support.grpo_on_kubernetes import Grpo
from support.node_logs import NodeLogs
from support.rollout_files import sample, write_samples

STEPS = [{"step": n, "time": 2.0 * n, "task_reward/avg": 0.3 * n, "staleness/avg": 1.0} for n in (1, 2, 3)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests that kill the operator last, so that they disturb no others."""
    items.sort(key=lambda item: "restart" in item.path.name)


@pytest.fixture(scope="module")
def node(plane: ControlPlane, api: Api, kubelet: object) -> Iterator[NodeLogs]:
    """Nodes that serve logs."""
    node = NodeLogs(plane.ca, plane.ca.with_suffix(".key"))
    node.announce(api)
    yield node
    node.stop()


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Files written by a run in its pods."""
    folder = tmp_path / "volume"
    folder.mkdir()
    (folder / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in STEPS))
    (folder / "summary.json").write_text(json.dumps({"outcome": "succeeded", "steps": 3}))
    (folder / "config.yaml").write_text("seed: 1\n")
    (folder / "secret").write_text("not asked for")
    for step in (1, 2, 12):
        write_samples(folder, step, sample("a", completion=f"the answer of step {step}"))
    for step in (0, 12):
        write_evaluation(folder, step, answer("1+1", float(step > 0)))
    return folder


@pytest.fixture
def grpo(plane: ControlPlane, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Grpo:
    monkeypatch.chdir(tmp_path)
    return Grpo(plane, experiment, tmp_path)
