"""`grpo stop` and `grpo scale` with ``--on kubernetes``; tests/control_plane runs them on a real API server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from areal_launcher.cluster.client import ClusterTarget
from areal_launcher.cluster.control import ClusterRun, is_stopped


def experiment(*, suspend: bool | None, manager: str = "grpo", operation: str = "Update") -> dict[str, Any]:
    owned = {"f:spec": {"f:runPolicy": {"f:suspend": {}}}}
    return {
        "metadata": {
            "name": "exp",
            "managedFields": [
                {"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:spec": {"f:servers": {}}}},
                {"manager": manager, "operation": operation, "fieldsV1": owned},
            ],
        },
        "spec": {} if suspend is None else {"runPolicy": {"suspend": suspend}},
    }


def test_only_a_suspension_by_grpo_stop_counts_as_a_stop() -> None:
    assert is_stopped(experiment(suspend=True))
    assert not is_stopped(experiment(suspend=False))
    assert not is_stopped(experiment(suspend=None))
    assert not is_stopped(experiment(suspend=True, manager="kueue"))
    assert not is_stopped(experiment(suspend=True, operation="Apply"))  # in the user's own file
    assert not is_stopped({"metadata": {}, "spec": {"runPolicy": {"suspend": True}}})


def test_pods_are_not_ended_without_a_checkpoint() -> None:
    target = ClusterTarget(str(Path("config")), None, "team")
    with pytest.raises(ValueError, match=r"--now does not apply to --on kubernetes.*kubectl .*delete grpo exp"):
        ClusterRun("exp", target).stop(now=True)
