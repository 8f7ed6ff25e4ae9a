"""The user's code on its way into a cluster: a packed directory in an immutable ConfigMap that the experiment owns."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from areal_api import resource_names
from areal_api.code import CodeSpec
from areal_api.experiment import API_VERSION, KIND, GRPOExperiment
from areal_api.paths import expand_home
from areal_api.user_code.archive import IGNORE_FILE, MAX_CONFIG_MAP_BYTES, Archive, pack
from areal_launcher.cluster.client import MANAGER, ApiError, Cluster, Object
from areal_launcher.errors import RunError


@dataclass(frozen=True)
class PackedCode:
    """An archive and the ConfigMap that holds it."""

    archive: Archive
    config_map: str


def pack_code(experiment: GRPOExperiment) -> tuple[GRPOExperiment, PackedCode | None]:
    """The experiment with ``code.archive`` in place of ``code.directory``, and the archive.

    Raises ``ValueError`` for a directory that is missing, or too large for a ConfigMap.
    """
    spec = experiment.spec
    if spec.code.directory is None:
        return experiment, None
    directory = Path(expand_home(spec.code.directory))
    archive = pack(directory)
    if len(archive.data) > MAX_CONFIG_MAP_BYTES:
        raise ValueError(
            f"code.directory: {directory} has {len(archive.data) // 1024} KiB compressed, more than the "
            f"{MAX_CONFIG_MAP_BYTES // 1024} KiB that a ConfigMap holds; name data and models in "
            f"{directory / IGNORE_FILE}, or push the code to a Git repository and set code.git"
        )
    name = resource_names.code_config_map(experiment.name, archive.sha256[:10])
    kept = spec.code.model_dump(by_alias=True, exclude_unset=True, exclude={"directory"})
    code = CodeSpec.model_validate({**kept, "archive": {"configMap": name, "sha256": archive.sha256}})
    packed = experiment.model_copy(update={"spec": spec.model_copy(update={"code": code})})
    return packed, PackedCode(archive, name)


def upload(cluster: Cluster, code: PackedCode, experiment: str, namespace: str, *, owner: str | None) -> None:
    """Create the ConfigMap, or confirm it. ``owner``: UID of the experiment, once it exists, which deletes it."""
    labels = {resource_names.MANAGED_BY: MANAGER, resource_names.EXPERIMENT: experiment}
    metadata: Object = {"name": code.config_map, "labels": labels}
    if owner is not None:
        reference = {"apiVersion": API_VERSION, "kind": KIND, "name": experiment, "uid": owner, "controller": False}
        metadata["ownerReferences"] = [reference]
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "immutable": True,
        "binaryData": {resource_names.CODE_ARCHIVE: base64.b64encode(code.archive.data).decode()},
    }
    try:
        cluster.apply(body, namespace)
    except ApiError as error:
        raise RunError(
            f"code.directory: the API server rejects ConfigMap {code.config_map} with the code: {error}"
        ) from error
