"""The chart, installed on a real cluster as its README describes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hack.cluster.kind_cluster import REGISTRY, KindCluster

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "helm" / "areal-gsm8k"


@dataclass
class Release:
    """One release of the chart."""

    cluster: KindCluster
    tag: str
    name: str = "areal-gsm8k"
    namespace: str = "areal"

    def install(self, *settings: str) -> str:
        """``helm install``; waits until the operator is ready."""
        return self._helm(
            *["upgrade", "--install", self.name, str(CHART), "--create-namespace", "--wait", "--timeout=180s"],
            *["--values", str(CHART / "values-cpu.yaml")],
            *[f"--set={setting}" for setting in (f"image.registry={REGISTRY}", f"image.tag={self.tag}", *settings)],
        )

    def test(self) -> str:
        """``helm test``."""
        return self._helm("test", self.name, "--timeout=120s")

    def uninstall(self) -> None:
        """``helm uninstall``; does nothing if it is not installed."""
        self._helm("uninstall", self.name, "--ignore-not-found", "--wait", "--timeout=120s")

    def kill_operator(self) -> None:
        """Kill its pods without a grace period."""
        self.cluster.kubectl(
            *["--namespace", self.namespace, "delete", "pod", "--force", "--grace-period=0"],
            *["--selector", f"app.kubernetes.io/instance={self.name}"],
        )

    def operator_pod(self) -> dict[str, Any] | None:
        """The operator's pod, unless it is terminating."""
        selector = f"app.kubernetes.io/instance={self.name}"
        found = self.cluster.kubectl(
            "--namespace", self.namespace, "get", "pod", "--selector", selector, "--output", "json"
        )
        return next((pod for pod in json.loads(found)["items"] if not pod["metadata"].get("deletionTimestamp")), None)

    def until_operator_is_ready(self) -> None:
        """Wait for the operator's rollout, also after it was killed."""
        self.cluster.kubectl(
            *["--namespace", self.namespace, "rollout", "status", "deployment", "--timeout=180s"],
            *["--selector", f"app.kubernetes.io/instance={self.name}"],
        )

    def _helm(self, *arguments: str) -> str:
        return self.cluster.helm("--namespace", self.namespace, *arguments)
