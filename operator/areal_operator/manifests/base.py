"""What all manifests share: the owner's reference, labels, and the digest by which an edit of the spec is seen."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from areal_api import names, resource_names
from areal_api.experiment import API_VERSION, KIND, GRPOExperiment
from areal_api.render import config_yaml
from areal_operator.settings import Settings

Manifest = dict[str, Any]
DIGEST = "areal.dev/manifest"


@dataclass(frozen=True)
class Build:
    """What the builders are given."""

    experiment: GRPOExperiment
    namespace: str
    uid: str
    attempt: int
    api_key: str
    settings: Settings

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self.experiment.name

    @property
    def config(self) -> str:
        """The resolved configuration, as a file."""
        return config_yaml(self.experiment.spec.config)

    @property
    def config_map(self) -> str:
        """Name of the ConfigMap that holds it."""
        return resource_names.config_map(self.name, digest(self.config)[:10])

    @property
    def fileroot(self) -> PurePosixPath:
        """Where the shared volume is mounted."""
        return names.IMAGE_ROOT / self.experiment.spec.config.cluster.fileroot

    @property
    def run_dir(self) -> PurePosixPath:
        """The run directory in the pods."""
        return names.IMAGE_ROOT / names.run_dir(self.experiment.spec.config).as_posix()

    def image(self, kind: Literal["trainer", "server"]) -> str:
        """Image of the pods of one kind; raises ``ValueError`` where there is none."""
        section = self.experiment.spec.servers if kind == "server" else self.experiment.spec.trainer
        return self.settings.image(kind, section.device, section.image)


def digest(value: Any) -> str:
    """Hexadecimal digest of plain data."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def owned(
    build: Build,
    *,
    api_version: str,
    kind: str,
    name: str,
    body: Manifest,
    labels: Manifest,
    annotations: Manifest | None = None,
) -> Manifest:
    """A child of the experiment, removed with it."""
    manifest = {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": build.namespace,
            "labels": labels,
            "ownerReferences": [owner_reference(build)],
        },
        **body,
    }
    manifest["metadata"]["annotations"] = {**(annotations or {}), DIGEST: digest(manifest)[:16]}
    return manifest


def owner_reference(build: Build) -> Manifest:
    """The experiment as owner. It blocks nothing: deleting an experiment never waits for the operator."""
    return {"apiVersion": API_VERSION, "kind": KIND, "name": build.name, "uid": build.uid, "controller": True}
