"""What all manifests share: the owner reference, the labels, and a digest annotation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from areal_api import names, resource_names
from areal_api.experiment import API_VERSION, KIND, GRPOExperiment
from areal_api.render import config_yaml
from areal_operator.settings import Settings

Manifest = dict[str, Any]
DIGEST = "areal.dev/manifest"  # annotation: digest of the manifest that an object was last applied from
CREATED_FOR = "areal.dev/created-for"  # annotation of a volume claim: UID of the experiment that created it


@dataclass(frozen=True)
class Gang:
    """Groups of pods that start together or not at all. ``servers`` and ``trainer`` are the names of theirs."""

    api: str  # a key of pod_groups.APIS
    servers: str | None = None
    trainer: str | None = None
    groups: Mapping[str, int] = field(default_factory=dict)  # by name: how many pods start together


@dataclass(frozen=True)
class Build:
    """Input of the manifest builders."""

    experiment: GRPOExperiment
    namespace: str
    uid: str
    attempt: int
    api_key: str
    gateway_key: str
    settings: Settings
    config_text: str | None = None  # the resolved configuration as YAML, if it is already rendered
    claim_access_modes: tuple[str, ...] | None = None  # of the existing volume claim; None before it exists
    gang: Gang | None = None  # which pods start together, if the scheduler is asked for that

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self.experiment.name

    @property
    def config(self) -> str:
        """The resolved configuration, as YAML."""
        return self.config_text or config_yaml(self.experiment.spec.config)

    @property
    def secret(self) -> str:
        """Name of the Secret that holds the configuration and the API key."""
        return resource_names.run_secret(self.name, self.uid, digest(self.config)[:10])

    @property
    def fileroot(self) -> PurePosixPath:
        """Mount path of the shared volume."""
        return names.IMAGE_ROOT / self.experiment.spec.config.cluster.fileroot

    @property
    def run_dir(self) -> PurePosixPath:
        """The run directory in the pods."""
        return names.IMAGE_ROOT / names.run_dir(self.experiment.spec.config).as_posix()

    @property
    def access_modes(self) -> tuple[str, ...]:
        """Access modes of the volume: those of the claim once it exists, because they are immutable."""
        return self.claim_access_modes or tuple(self.experiment.spec.storage.access_modes)

    def image(self, kind: Literal["trainer", "server"]) -> str:
        """Image of one kind of pod; raises ``ValueError`` if neither spec nor settings name one."""
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
    """An object that the experiment owns: the garbage collector deletes it together with the experiment."""
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
    """The experiment as controlling owner. It does not block deletion, which therefore never needs the operator."""
    return {"apiVersion": API_VERSION, "kind": KIND, "name": build.name, "uid": build.uid, "controller": True}
