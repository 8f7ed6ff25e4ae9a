"""Names and labels of what an experiment owns in a cluster: the operator makes it, the launcher looks it up."""

from __future__ import annotations

MANAGED_BY = "app.kubernetes.io/managed-by"
OPERATOR = "areal-operator"
EXPERIMENT = "areal.dev/experiment"
COMPONENT = "areal.dev/component"
ATTEMPT = "areal.dev/attempt"
SERVER = "server"
TRAINER = "trainer"
SERVER_PORT = 30000
MASTER_PORT = 29500


def labels(experiment: str) -> dict[str, str]:
    """Labels of everything that belongs to an experiment."""
    return {MANAGED_BY: OPERATOR, EXPERIMENT: experiment}


def component_labels(experiment: str, component: str) -> dict[str, str]:
    """Labels of the pods of one kind."""
    return {**labels(experiment), COMPONENT: component}


def selector(labels: dict[str, str]) -> str:
    """``labels`` as kubectl's ``--selector`` takes them."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def servers(experiment: str) -> str:
    """StatefulSet of the servers, its headless Service and its PodDisruptionBudget."""
    return f"{experiment}-server"


def server_address(experiment: str, namespace: str, index: int) -> str:
    """``host:port`` of one server, which stays when its pod is replaced."""
    name = servers(experiment)
    return f"{name}-{index}.{name}.{namespace}.svc:{SERVER_PORT}"


def trainer(experiment: str) -> str:
    """Headless Service of the trainer's pods."""
    return f"{experiment}-trainer"


def trainer_job(experiment: str, attempt: int) -> str:
    """Job of one attempt."""
    return f"{trainer(experiment)}-{attempt}"


def trainer_host(experiment: str, namespace: str, attempt: int, node: int) -> str:
    """DNS name of one pod of the trainer."""
    return f"{trainer_job(experiment, attempt)}-{node}.{trainer(experiment)}.{namespace}.svc"


def config_map(experiment: str, digest: str) -> str:
    """The resolved configuration with this digest."""
    return f"{experiment}-config-{digest}"


def api_key_secret(experiment: str) -> str:
    """The key that the servers ask for."""
    return f"{experiment}-api-key"


def volume_claim(experiment: str) -> str:
    """The volume that holds the run directory."""
    return f"{experiment}-run"


def service_account(experiment: str) -> str:
    """Account of the pods; its tokens are for progress alone."""
    return f"{experiment}-run"


def network_policy(experiment: str) -> str:
    """Who may reach the pods."""
    return f"{experiment}-run"


def progress_audience(uid: str) -> str:
    """Audience of the token with which a trainer reports progress of the experiment with this uid, and of no other."""
    return f"progress.areal.dev/{uid}"
