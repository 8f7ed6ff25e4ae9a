"""Logs of pods."""

from __future__ import annotations

from typing import Any

import pytest

from areal_api import resource_names
from areal_launcher.cluster import logs
from areal_launcher.cluster.client import Cluster, ClusterTarget
from areal_launcher.errors import RunError
from areal_launcher.terminal_text import printable_line


def pod_of(name: str, component: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "uid": name, "labels": resource_names.component_labels("exp", component)},
        "status": {"containerStatuses": [{"name": "main", "restartCount": 0, "state": {"running": {}}}]},
    }


PODS = [
    pod_of("exp-server-0", resource_names.SERVER),
    pod_of("exp-trainer-1-0-x", resource_names.TRAINER),
    pod_of("exp-agent-solver-0", resource_names.AGENT),
    pod_of("exp-tool-python-0", resource_names.TOOL),
]


class FakeCluster:
    """A namespace with an experiment and ``pods``, each of which wrote its name."""

    namespace = "team-a"

    def __init__(self, pods: list[dict[str, Any]]) -> None:
        self.pods = pods

    def get(self, kind: str, namespace: str, name: str) -> dict[str, Any]:
        return {"metadata": {"name": name}, "status": {"phase": "Running", "message": "step 3"}}

    def list(self, kind: str, namespace: str, *, labels: str) -> list[dict[str, Any]]:
        wanted = dict(pair.split("=") for pair in labels.split(","))
        return [pod for pod in self.pods if wanted.items() <= pod["metadata"]["labels"].items()]

    def log(self, namespace: str, pod: str, container: str, **options: str) -> bytes:
        return f"I am {pod}\n".encode()


def print_logs(monkeypatch: pytest.MonkeyPatch, pods: list[dict[str, Any]], component: str) -> None:
    monkeypatch.setattr(Cluster, "connect", lambda target: FakeCluster(pods))
    logs.logs("exp", ClusterTarget(), component=component, process=None, lines=5, follow=False)


@pytest.mark.parametrize(
    ("component", "pod"),
    [
        ("servers", "exp-server-0"),
        ("trainer", "exp-trainer-1-0-x"),
        ("agents", "exp-agent-solver-0"),
        ("tools", "exp-tool-python-0"),
    ],
)
def test_a_component_selects_its_pods(
    component: str, pod: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    print_logs(monkeypatch, PODS, component)
    assert capsys.readouterr().out == f"{pod} | I am {pod}\n"


def test_a_component_without_pods_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="exp has no pods of component tools; its phase is Running: step 3"):
        print_logs(monkeypatch, PODS[:3], "tools")


@pytest.mark.parametrize(
    ("line", "seen"), [("step 1", "step 1"), ("10%\r50%\r100%", "100%"), ("100%\r", "100%"), ("", "")]
)
def test_a_progress_bar_is_printed_as_its_final_line(line: str, seen: str) -> None:
    assert printable_line(line) == seen
