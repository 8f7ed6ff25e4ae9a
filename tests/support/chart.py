"""Runs Helm on the chart: rendering, and releases on a control plane."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
NO_EXPERIMENT = Path(__file__).parent / "no_experiment.yaml"
CHART = ROOT / "helm" / "areal-gsm8k"
CPU = CHART / "values-cpu.yaml"
Object = dict[str, Any]


class HelmError(Exception):
    """Helm failed; the text is its output."""


def helm_binary() -> Path:
    """Helm from `.bin` or from PATH. Skips the test if there is none."""
    own = ROOT / ".bin" / "helm"
    found = str(own) if own.exists() else shutil.which("helm")
    if found is None:
        pytest.skip(
            "Helm is missing; `make cluster` builds it, or: GOBIN=$PWD/.bin go install helm.sh/helm/v4/cmd/helm@v4.3.1"
        )
    return Path(found)


class Helm:
    """Helm with its own home directory, for one cluster or none."""

    def __init__(self, home: Path, kubeconfig: Path | None = None) -> None:
        self._binary = helm_binary()
        folders = {f"HELM_{kind}_HOME": str(home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        self._env = {**os.environ, **folders, "KUBECONFIG": str(kubeconfig or home / "none")}

    def run(self, *arguments: str) -> str:
        """Output of a command; raises ``HelmError``."""
        command = [str(self._binary), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=self._env, timeout=180, check=False)
        if done.returncode:
            raise HelmError(done.stdout + done.stderr)
        return done.stdout

    def template(self, *settings: str, release: str = "areal-gsm8k", more: Sequence[str] = ()) -> list[Object]:
        """The objects of a release in namespace ``areal``, including hooks."""
        text = self.run("template", release, str(CHART), "--namespace=areal", *_set(settings), *more)
        return [obj for obj in yaml.safe_load_all(text) if obj]

    def install(self, release: str, namespace: str, *settings: str, more: Sequence[str] = ()) -> str:
        """``helm install``."""
        return self.run("install", release, str(CHART), f"--namespace={namespace}", *_set(settings), *more)

    def upgrade(
        self, release: str, namespace: str, *settings: str, chart: Path = CHART, more: Sequence[str] = ()
    ) -> str:
        """``helm upgrade``."""
        return self.run("upgrade", release, str(chart), f"--namespace={namespace}", *_set(settings), *more)

    def uninstall(self, release: str, namespace: str) -> str:
        """``helm uninstall``; ignores a missing release."""
        return self.run("uninstall", release, f"--namespace={namespace}", "--ignore-not-found")


def one(objects: Sequence[Object], kind: str, name: str | None = None) -> Object:
    """The only object of a kind, or the only one with this name."""
    found = [obj for obj in objects if obj["kind"] == kind and name in (None, obj["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} × {kind} {name or ''} among {[obj['kind'] for obj in objects]}"
    return found[0]


def operator_container(objects: Sequence[Object]) -> Object:
    """The operator's container."""
    names = [obj["metadata"]["name"] for obj in objects if obj["kind"] == "Deployment"]
    (name,) = [name for name in names if not name.endswith("-page")]
    deployment = one(objects, "Deployment", name)
    return dict(deployment["spec"]["template"]["spec"]["containers"][0])


def environment(container: Object) -> dict[str, str]:
    """Environment variables of a container that have literal values."""
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}


def _set(settings: Sequence[str]) -> list[str]:
    """Options for Helm. The chart's experiment is off unless later values or settings enable it."""
    return [f"--values={NO_EXPERIMENT}", *[f"--set={setting}" for setting in settings]]
