"""The user's code on its way into a cluster: a packed directory in an immutable ConfigMap that the experiment owns."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from areal_api import names, resource_names
from areal_api.agents import code_problems
from areal_api.code import CodeSpec
from areal_api.commands import BUCKET_CODE_MODULE, bucket_env, literal_env
from areal_api.experiment import API_VERSION, KIND, ExperimentSpec, GRPOExperiment
from areal_api.paths import expand_home
from areal_api.user_code.archive import IGNORE_FILE, MAX_CONFIG_MAP_BYTES, Archive, pack
from areal_launcher.cluster.client import MANAGER, ApiError, Cluster, Object
from areal_launcher.errors import RunError

UPLOAD_S = 1800.0


@dataclass(frozen=True)
class PackedCode:
    """An archive and the ConfigMap that holds it."""

    archive: Archive
    config_map: str | None  # None: in the bucket


def pack_code(experiment: GRPOExperiment) -> tuple[GRPOExperiment, PackedCode | None]:
    """The experiment with ``code.archive`` in place of ``code.directory``, and the archive.

    Raises ``ValueError`` for a directory that is missing, or too large for a ConfigMap.
    """
    spec = experiment.spec
    if spec.code.directory is None:
        return experiment, None
    directory = Path(expand_home(spec.code.directory))
    archive = pack(directory)
    small = len(archive.data) <= MAX_CONFIG_MAP_BYTES
    if not small and spec.storage.bucket is None:
        raise ValueError(
            f"code.directory: {directory} has {len(archive.data) // 1024} KiB compressed, more than the "
            f"{MAX_CONFIG_MAP_BYTES // 1024} KiB that a ConfigMap holds; name data and models in "
            f"{directory / IGNORE_FILE}, set storage.bucket, or push the code to a Git repository and set code.git"
        )
    name = resource_names.code_config_map(experiment.name, archive.sha256[:10]) if small else None
    kept = spec.code.model_dump(by_alias=True, exclude_unset=True, exclude={"directory"})
    source = {"sha256": archive.sha256, **({"configMap": name} if name else {})}
    code = CodeSpec.model_validate({**kept, "archive": source})
    problems = [*code_problems("agents", spec.agents, code), *code_problems("tools", spec.tools, code)]
    if problems:
        raise ValueError(f"code.directory: {directory} is too large for a ConfigMap; {'; '.join(problems)}")
    packed = experiment.model_copy(update={"spec": spec.model_copy(update={"code": code})})
    return packed, PackedCode(archive, name)


def upload_to_bucket(code: PackedCode, spec: ExperimentSpec) -> None:
    """Put a large archive into the bucket, with the credentials of this machine's user. Raises ``ValueError``."""
    python = os.environ.get(names.TRAINER_PYTHON) or sys.executable
    with tempfile.NamedTemporaryFile() as file:
        file.write(code.archive.data)
        file.flush()
        done = subprocess.run(
            [python, "-m", BUCKET_CODE_MODULE, "put", file.name, code.archive.sha256],
            env={**os.environ, **literal_env(spec.trainer.env), **bucket_env(spec)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=UPLOAD_S,
            check=False,
        )
    if done.returncode:
        line = (done.stderr.strip().splitlines() or ["the upload printed nothing"])[-1]
        raise RunError(f"code.directory: {line.partition(': ')[2] or line}")


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
