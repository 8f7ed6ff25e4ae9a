"""What is checked of a cluster and of an experiment for it before anything is made there."""

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
from areal_launcher.cluster.client import ApiError, Cluster, Object
from areal_launcher.errors import RunError

IN_IMAGES = ("examples/tiny", "examples/gsm8k")  # what our own images hold below it
INSTALL = "helm install areal-gsm8k helm/areal-gsm8k --namespace areal --create-namespace"
RENEWED_WITHIN_S = 8.0  # the operator renews its Lease every 5 s; one that was just installed makes it
POLL_S = 0.5


def check_api(cluster: Cluster) -> None:
    """The cluster knows our kind, in this version."""
    root = f"/apis/{API_VERSION}"
    if cluster.serves(root):
        return
    group = API_VERSION.split("/")[0]
    if cluster.serves(f"/apis/{group}"):
        raise RunError(
            f"the {PLURAL} of {cluster.server} are of another version than {API_VERSION}; bring it up to date: "
            "grpo crd | kubectl apply --server-side -f -"
        )
    raise RunError(f"{cluster.server} knows no {PLURAL}.{group}: AReaL is not installed there; install it: {INSTALL}")


def check_operator(cluster: Cluster, say: Callable[[str], None]) -> None:
    """Some operator renews its Lease. Whether it is dead is judged by the server's clock, then by watching it."""
    try:
        leases = operator_leases(cluster)
    except ApiError as error:
        if error.code != 403:
            raise
        say("it cannot be seen whether the operator runs (no right to list leases); it will show")
        return
    before, deadline = renewals(leases), time.monotonic() + RENEWED_WITHIN_S
    while not any(is_fresh(lease, cluster.time_s()) for lease in leases) and renewals(leases) == before:
        if time.monotonic() > deadline:
            raise RunError(f"{why_dead(leases, cluster.server)} {INSTALL}")
        time.sleep(POLL_S)
        leases = operator_leases(cluster)


def why_dead(leases: list[Object], server: str) -> str:
    """That no operator is at work, and where to look."""
    if not leases:
        return f"no operator has ever run in {server}; install it:"
    namespace = leases[0]["metadata"]["namespace"]
    renewed = (leases[0].get("spec") or {}).get("renewTime") or "never"
    return (
        f"the operator in namespace {namespace} does not run: its Lease was last renewed at {renewed}; "
        f"look at its pods (kubectl -n {namespace} get pods), or install it:"
    )


def operator_leases(cluster: Cluster) -> list[Object]:
    """The Leases of operators, whatever namespace they are in."""
    return cluster.list("Lease", None, fields=f"metadata.name={resource_names.OPERATOR}")


def renewals(leases: list[Object]) -> list[tuple[str, str]]:
    """Holders and times, which change while an operator lives."""
    specs = [lease.get("spec") or {} for lease in leases]
    return [(str(spec.get("holderIdentity")), str(spec.get("renewTime"))) for spec in specs]


def is_fresh(lease: Object, now_s: float) -> bool:
    """Whether a Lease is held at ``now_s``."""
    spec = lease.get("spec") or {}
    if not spec.get("holderIdentity") or not spec.get("renewTime"):
        return False
    renewed = datetime.fromisoformat(str(spec["renewTime"])).timestamp()
    return now_s - renewed < float(spec.get("leaseDurationSeconds") or 0)


def check_files(spec: ExperimentSpec) -> None:
    """``ValueError`` for a file of this machine that the pods will not see."""
    config, script = spec.config, spec.trainer.script
    if script is not None and script.endswith(".py") and not in_pods(spec, script):
        raise ValueError(unseen("trainer.script", script))
    paths = {
        "actor.path": config.actor.path,
        "tokenizer_path": config.tokenizer_path,
        "sglang.model_path": config.sglang.model_path,
        "ref.path": config.ref.path if config.ref is not None else None,
        "train_dataset.path": config.train_dataset.path,
        "valid_dataset.path": config.valid_dataset.path if config.valid_dataset is not None else None,
    }
    for key, path in paths.items():
        if path and is_local_path(path) and Path(expand_home(path)).exists() and not in_pods(spec, path):
            raise ValueError(unseen(key, path))


def in_pods(spec: ExperimentSpec, path: str) -> bool:
    """Whether pods may see ``path``: in an image of the user's, in what ours hold, or on a volume."""
    if spec.trainer.image is not None:
        return True
    place = PurePosixPath(posixpath.normpath(names.IMAGE_ROOT / path))
    volumes = [PurePosixPath(str(mount.get("mountPath"))) for mount in spec.trainer.volume_mounts]
    known = [
        names.IMAGE_ROOT / spec.config.cluster.fileroot,
        *volumes,
        *(names.IMAGE_ROOT / name for name in IN_IMAGES),
    ]
    return any(place.is_relative_to(root) for root in known)


def unseen(key: str, path: str) -> str:
    """The message about a file that pods do not see."""
    return (
        f"{key}: {path} is a file of this machine, which pods do not see; make an image from areal-trainer that holds "
        f"it below {names.IMAGE_ROOT} and set trainer.image, or mount it by trainer.volumes and trainer.volumeMounts"
    )


def check_target(target: Path, *, namespace: str, name: str) -> None:
    """``ValueError`` where the results would be mixed with those of another run."""
    where = run_files.read_cluster(target)
    if where is None and (not target.exists() or not any(target.iterdir())):
        return
    if where is None:
        raise ValueError(
            f"{target} holds a run of this machine; choose another config.trial_name, or --results for the results"
        )
    if (where["namespace"], where["name"]) != (namespace, name):
        raise ValueError(
            f"{target} holds the results of {where['name']} of namespace {where['namespace']}; "
            "choose another config.trial_name, or --results for these"
        )


def with_fix(message: str) -> str:
    """The API server's message, with the fix where its resource definition is older than this program."""
    if "field not declared in schema" in message or "unknown field" in message:
        return f"{message}; the cluster's definition is older: grpo crd | kubectl apply --server-side -f -"
    return message
