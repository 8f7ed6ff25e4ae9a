"""Checks of the cluster and the experiment before anything is created."""

from __future__ import annotations

import posixpath
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path, PurePosixPath

from areal_api import names, resource_names
from areal_api.experiment import API_VERSION, ExperimentSpec
from areal_api.generate.crd import PLURAL
from areal_api.paths import expand_home, is_local_path
from areal_launcher import run_files
from areal_launcher.bounded_files import number
from areal_launcher.cluster.client import ApiError, Cluster, Object
from areal_launcher.errors import RunError

IN_IMAGES = ("examples/tiny", "examples/gsm8k")  # included in our images, below names.IMAGE_ROOT
INSTALL = "helm install areal-gsm8k helm/areal-gsm8k --namespace areal --create-namespace"
RENEWED_WITHIN_S = 8.0  # the operator renews its Lease every 5 s, and creates it after installation
POLL_S = 0.5


def check_api(cluster: Cluster) -> None:
    """The cluster must serve our API version."""
    root = f"/apis/{API_VERSION}"
    if cluster.serves(root):
        return
    group = API_VERSION.split("/")[0]
    if cluster.serves(f"/apis/{group}"):
        raise RunError(
            f"{cluster.server} serves another version of {PLURAL} than {API_VERSION}; update the definition: "
            "grpo crd | kubectl apply --server-side -f -"
        )
    raise RunError(f"{cluster.server} has no resource {PLURAL}.{group}: AReaL is not installed; install it: {INSTALL}")


def check_operator(cluster: Cluster, notify: Callable[[str], None]) -> None:
    """An operator must be renewing its Lease, judged by the server's clock and then by watching for a renewal."""
    try:
        leases = operator_leases(cluster)
    except ApiError as error:
        if error.code != 403:
            raise
        notify("cannot check that the operator is running (no permission to list leases); continuing")
        return
    initial, deadline = renewals(leases), time.monotonic() + RENEWED_WITHIN_S
    while not any(is_fresh(lease, cluster.time_s()) for lease in leases) and renewals(leases) == initial:
        if time.monotonic() > deadline:
            raise RunError(f"{no_operator_message(leases, cluster.server)} {INSTALL}")
        time.sleep(POLL_S)
        leases = operator_leases(cluster)


def no_operator_message(leases: list[Object], server: str) -> str:
    """Message that no operator is running, and where to look."""
    if not leases:
        return f"no operator has ever run in {server}; install it:"
    namespace = leases[0]["metadata"]["namespace"]
    renewed = (leases[0].get("spec") or {}).get("renewTime") or "never"
    return (
        f"the operator in namespace {namespace} is not running: its Lease was last renewed at {renewed}; "
        f"check its pods (kubectl -n {namespace} get pods), or install it:"
    )


def operator_leases(cluster: Cluster) -> list[Object]:
    """The operators' Leases in all namespaces."""
    return cluster.list("Lease", None, fields=f"metadata.name={resource_names.OPERATOR}")


def renewals(leases: list[Object]) -> list[tuple[str, str]]:
    """Holder and renewal time of each Lease, which change while an operator is running."""
    specs = [lease.get("spec") or {} for lease in leases]
    return [(str(spec.get("holderIdentity")), str(spec.get("renewTime"))) for spec in specs]


def is_fresh(lease: Object, now_s: float) -> bool:
    """Whether a Lease is valid at ``now_s``."""
    spec = lease.get("spec") or {}
    if not spec.get("holderIdentity") or not spec.get("renewTime"):
        return False
    try:
        renewed = datetime.fromisoformat(str(spec["renewTime"])).timestamp()
    except (ValueError, OverflowError):
        return False
    return now_s - renewed < (number(spec.get("leaseDurationSeconds")) or 0.0)


def check_files(spec: ExperimentSpec) -> None:
    """Raise ``ValueError`` for a local file that pods cannot see."""
    config, script = spec.config, spec.trainer.script
    if script is not None and script.endswith(".py") and spec.code.has_source:
        folder = spec.code.directory
        if folder is not None and not (Path(expand_home(folder)) / script).is_file():
            raise ValueError(f"trainer.script: code.directory has no file {script}; give its path in {folder}")
    elif script is not None and script.endswith(".py") and not in_pods(spec, script):
        raise ValueError(not_in_pods_message("trainer.script", script))
    paths = {
        "actor.path": config.actor.path,
        "tokenizer_path": config.tokenizer_path,
        "sglang.model_path": config.sglang.model_path,
        "ref.path": config.ref.path if config.ref is not None else None,
        "train_dataset.path": config.train_dataset.path,
        **{f"train_mix[{index}].path": one.path for index, one in enumerate(config.train_mix)},
        **{f"{one.key}.path": one.dataset.path for one in config.held_out},
    }
    for key, path in paths.items():
        if path and is_local_path(path) and Path(expand_home(path)).exists() and not in_pods(spec, path):
            raise ValueError(not_in_pods_message(key, path))


def in_pods(spec: ExperimentSpec, path: str) -> bool:
    """Whether pods may see ``path``: in a custom image, in our images, or on a volume."""
    if spec.trainer.image is not None:
        return True
    absolute = PurePosixPath(posixpath.normpath(names.IMAGE_ROOT / path))
    volumes = [PurePosixPath(str(mount.get("mountPath"))) for mount in spec.trainer.volume_mounts]
    visible = [
        names.IMAGE_ROOT / spec.config.cluster.fileroot,
        *volumes,
        *(names.IMAGE_ROOT / name for name in IN_IMAGES),
    ]
    return any(absolute.is_relative_to(root) for root in visible)


def not_in_pods_message(key: str, path: str) -> str:
    """Message about a file that pods cannot see."""
    return (
        f"{key}: {path} is a local file that pods cannot see; build an image from areal-trainer that contains "
        f"it below {names.IMAGE_ROOT} and set trainer.image, mount it with trainer.volumes and "
        "trainer.volumeMounts, or put a script into code.directory"
    )


def check_target(target: Path, *, namespace: str, name: str) -> None:
    """Raise ``ValueError`` if ``target`` already contains another run."""
    source = run_files.read_cluster(target)
    if source is None and (not target.exists() or not any(target.iterdir())):
        return
    if source is None:
        raise ValueError(
            f"{target} contains a local run; choose another config.trial_name, or another directory with --results"
        )
    if (source["namespace"], source["name"]) != (namespace, name):
        raise ValueError(
            f"{target} contains the results of {source['name']} of namespace {source['namespace']}; "
            "choose another config.trial_name, or another directory with --results"
        )


def add_hint(message: str) -> str:
    """Add the fix to the API server's message if its resource definition is older than this program."""
    if "field not declared in schema" in message or "unknown field" in message:
        return f"{message}; the cluster's resource definition is outdated: grpo crd | kubectl apply --server-side -f -"
    return message
