"""``servers.modelCache``: one download of a model for the servers of several experiments."""

from __future__ import annotations

from areal_operator.manifests.base import Build, Manifest

VOLUME, FOLDER = "areal-models", "/models"
MODULE = "areal_server.prefetch"


def command(build: Build) -> list[str] | None:
    """Arguments of Python that fill the cache; None without one. The program leaves out what is a local path there."""
    spec = build.experiment.spec
    if spec.servers.model_cache is None:
        return None
    wanted = {spec.config.sglang.model_path or spec.config.actor.path, spec.config.tokenizer_path}
    return ["-m", MODULE, FOLDER, *sorted(name for name in wanted if name)]


def environment(build: Build) -> dict[str, str]:
    """Variables of a server: everything it loads from the hub is in the cache, which it cannot write."""
    return {} if command(build) is None else {"HF_HUB_CACHE": FOLDER, "HF_HUB_OFFLINE": "1"}


def volumes(build: Build) -> list[Manifest]:
    """Volumes of a server's pod."""
    cache = build.experiment.spec.servers.model_cache
    return [] if cache is None else [{"name": VOLUME, "persistentVolumeClaim": {"claimName": cache.claim_name}}]


def mounts(build: Build, *, read_only: bool) -> list[Manifest]:
    """Mounts of the server (read-only) and of its init container."""
    mount: Manifest = {"name": VOLUME, "mountPath": FOLDER}
    return [] if command(build) is None else [{**mount, **({"readOnly": True} if read_only else {})}]
