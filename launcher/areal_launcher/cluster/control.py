"""`grpo stop`, `resume` and `scale` with ``--on kubernetes``: changes that the operator carries out."""

from __future__ import annotations

from areal_api.experiment import KIND
from areal_api.status import TERMINAL_PHASES
from areal_launcher.cluster.checks import check_api
from areal_launcher.cluster.client import MANAGER, ApiError, Cluster, ClusterTarget, Object
from areal_launcher.cluster.follow import status_of
from areal_launcher.errors import RunError


def stop(name: str, target: ClusterTarget, *, now: bool) -> int:
    """Suspend an experiment: the trainer writes a recovery checkpoint, and all pods end."""
    if now:
        raise ValueError(
            "--now does not apply to --on kubernetes, where pods end within their grace period; omit it, or delete the "
            f"experiment: {target.kubectl} delete grpo {name}"
        )
    cluster, body = unfinished(name, target)
    change(cluster, body, {"runPolicy": {"suspend": True}})
    print(
        f"asked {name} to write a recovery checkpoint and end; grpo run --on kubernetes with the same experiment "
        "continues it"
    )
    return 0


def resume(name: str, target: ClusterTarget) -> int:
    """Continue a suspended experiment from its last checkpoint. Raises ``ValueError`` if it is not suspended."""
    cluster, body = unfinished(name, target)
    if not ((body.get("spec") or {}).get("runPolicy") or {}).get("suspend"):
        raise ValueError(f"{name} is not suspended; grpo status {name} --on kubernetes shows its state")
    change(cluster, body, {"runPolicy": {"suspend": False}})
    print(f"{name} continues; grpo status {name} --on kubernetes shows it")
    return 0


def scale(name: str, target: ClusterTarget, servers: int) -> int:
    """Change the number of servers."""
    cluster, body = unfinished(name, target)
    change(cluster, body, {"servers": {"replicas": servers}})
    print(f"asked for {servers} servers; grpo status {name} --on kubernetes shows them")
    return 0


def resume_if_stopped(cluster: Cluster, body: Object) -> bool:
    """Continue an experiment that ``stop`` has suspended, and nobody else since; whether it was."""
    if not is_stopped(body):
        return False
    change(cluster, body, {"runPolicy": {"suspend": False}})
    return True


def is_stopped(body: Object) -> bool:
    """Whether the last to set ``suspend`` was ``stop``, by the managers that the API server records for each field."""
    if not ((body.get("spec") or {}).get("runPolicy") or {}).get("suspend"):
        return False
    for entry in body["metadata"].get("managedFields") or []:
        if entry.get("manager") == MANAGER and entry.get("operation") == "Update":
            policy = ((entry.get("fieldsV1") or {}).get("f:spec") or {}).get("f:runPolicy") or {}
            if "f:suspend" in policy:
                return True
    return False


def unfinished(name: str, target: ClusterTarget) -> tuple[Cluster, Object]:
    """An experiment that has not ended. Raises ``ValueError`` if there is none."""
    cluster = Cluster.connect(target)
    check_api(cluster)
    body = cluster.get(KIND, cluster.namespace, name)
    if body is None:
        raise ValueError(
            f"{name}: no such experiment in namespace {cluster.namespace}; grpo status --on kubernetes lists them"
        )
    phase = status_of(body).phase
    if phase in TERMINAL_PHASES:
        raise ValueError(f"{name} has already {phase}; nothing of it runs")
    return cluster, body


def change(cluster: Cluster, body: Object, spec: Object) -> None:
    """Merge ``spec`` into the stored experiment. Raises ``RunError`` if the API server refuses."""
    name, namespace = str(body["metadata"]["name"]), str(body["metadata"]["namespace"])
    try:
        cluster.merge(KIND, namespace, name, {"spec": spec})
    except ApiError as error:
        raise RunError(f"the API server refused to change {name}: {error}") from error
