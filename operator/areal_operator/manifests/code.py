"""The user's code in the pods of trainer, agents and tools: an init container fetches it, so the operator never reads
or unpacks it."""

from __future__ import annotations

from pathlib import PurePosixPath

from areal_api import resource_names
from areal_api.code import CodeArchive, CodeSpec
from areal_api.commands import BUCKET_CODE_MODULE, CodePaths
from areal_operator.manifests.base import Build, Manifest

FOLDER = PurePosixPath("/opt/areal-code")
VOLUME, ARCHIVE_VOLUME = "areal-code", "areal-code-archive"
VOLUME_SIZE = "1Gi"
ARCHIVE_FOLDER = PurePosixPath("/etc/areal/code")
LAYERS = ".packages"  # on the run's volume: later attempts and other runs on it install nothing again
PREPARE_MODULE = "areal_api.user_code.prepare"
DOWNLOAD_CONTAINER, CONTAINER = "download-code", "code"
CODE = "areal.dev/code"  # annotation of the Job: what it runs, for the status


def job_annotations(build: Build) -> dict[str, str]:
    """Annotation of the Job."""
    code = _code(build)
    return {CODE: code.identity} if code.is_used else {}


def paths(build: Build) -> CodePaths | None:
    """Where the pods find the code."""
    return CodePaths.below(FOLDER, _code(build))


def layers_of_run(build: Build) -> PurePosixPath:
    """Folder of the packages on the run's volume."""
    return build.fileroot / LAYERS


def layers_of_pod() -> PurePosixPath:
    """Folder of the packages in a pod without the run's volume."""
    return FOLDER / LAYERS


def commands(build: Build, *, layers: PurePosixPath) -> list[tuple[str, list[str]]]:
    """Names of the init containers that prepare the code, and their arguments of Python; empty without code."""
    named = ((DOWNLOAD_CONTAINER, _download_command(build)), (CONTAINER, _command(build, layers)))
    return [(name, command) for name, command in named if command is not None]


def _command(build: Build, layers: PurePosixPath) -> list[str] | None:
    """Arguments of Python that prepare the code; None without code."""
    code = _code(build)
    if not code.is_used:
        return None
    spec = code.model_dump_json(by_alias=True, exclude_defaults=True)
    words = ["-m", PREPARE_MODULE, spec, str(FOLDER), "--layers", str(layers)]
    return words if code.archive is None else [*words, "--archive", str(_archive(code.archive))]


def _download_command(build: Build) -> list[str] | None:
    """Arguments of Python that get the archive from the bucket; None if it is elsewhere."""
    archive = _code(build).archive
    if archive is None or archive.config_map is not None:
        return None
    return ["-m", BUCKET_CODE_MODULE, "get", str(_archive(archive)), archive.sha256]


def volumes(build: Build) -> list[Manifest]:
    """Volumes of the pod: every attempt fetches the code again."""
    code = _code(build)
    if not code.is_used:
        return []
    result: list[Manifest] = [{"name": VOLUME, "emptyDir": {"sizeLimit": VOLUME_SIZE}}]
    if code.archive is not None and code.archive.config_map is not None:
        result.append({"name": ARCHIVE_VOLUME, "configMap": {"name": code.archive.config_map}})
    return result


def mounts_to_prepare(build: Build) -> list[Manifest]:
    """Mounts of the init containers."""
    if not _code(build).is_used:
        return []
    result: list[Manifest] = [{"name": VOLUME, "mountPath": str(FOLDER)}]
    archive = _code(build).archive
    if archive is not None and archive.config_map is not None:
        result.append({"name": ARCHIVE_VOLUME, "mountPath": str(ARCHIVE_FOLDER), "readOnly": True})
    return result


def mounts_to_use(build: Build) -> list[Manifest]:
    """Mounts of the container that uses the code."""
    return [{"name": VOLUME, "mountPath": str(FOLDER), "readOnly": True}] if _code(build).is_used else []


def _code(build: Build) -> CodeSpec:
    """``spec.code``. Raises ``ValueError`` for a directory, which only the machine of its user has."""
    code: CodeSpec = build.experiment.spec.code
    if code.directory is not None:
        raise ValueError(
            f"code.directory is {code.directory}, a directory that the cluster does not have; submit the experiment "
            "with grpo run --on kubernetes, which packs it, or set code.git"
        )
    if code.archive is not None and code.archive.config_map is None and build.experiment.spec.storage.bucket is None:
        raise ValueError(
            "code.archive has no configMap, and there is no storage.bucket that could hold it; submit the experiment "
            "with grpo run --on kubernetes"
        )
    return code


def _archive(archive: CodeArchive) -> PurePosixPath:
    """The file of the archive in the init container that unpacks it."""
    folder = FOLDER if archive.config_map is None else ARCHIVE_FOLDER
    return folder / resource_names.CODE_ARCHIVE
