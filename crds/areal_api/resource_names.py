"""Names and labels of an experiment's resources in a cluster, which the operator creates and the launcher reads."""

from __future__ import annotations

MANAGED_BY = "app.kubernetes.io/managed-by"
OPERATOR = "areal-operator"
EXPERIMENT = "areal.dev/experiment"
COMPONENT = "areal.dev/component"
ATTEMPT = "areal.dev/attempt"
SERVER = "server"
TRAINER = "trainer"
POOL = "areal.dev/pool"  # label of the pods of servers.pools: the name of their pool
BORROWED = "areal.dev/borrowed"  # label of all objects of a server above servers.autoscale.min: its number
AGENT = "agent"
TOOL = "tool"
PROGRAM = "areal.dev/program"  # label of the pods of agents and tools: their name in the spec
EXTERNAL = "areal.dev/external-network"  # label of the pods of agents that may leave the cluster: "true"
JOB_INDEX = "batch.kubernetes.io/job-completion-index"  # label of the trainer's pods
SERVER_PORT = 30000
SERVER_GROUP_PORT = 30100  # of a server's first pod, for its others; SGLang uses the 8 that follow
POD_INDEX = "apps.kubernetes.io/pod-index"  # label of the pods of a StatefulSet
GATEWAY_PORT = 8400
MASTER_PORT = 29500
WEIGHTS_PORT = 8500  # of the trainer's first pod, for servers without the run volume
CODE_ARCHIVE = "code.tar.gz"  # key of the ConfigMap with packed code


def labels(experiment: str) -> dict[str, str]:
    """Labels of every resource of an experiment."""
    return {MANAGED_BY: OPERATOR, EXPERIMENT: experiment}


def component_labels(experiment: str, component: str) -> dict[str, str]:
    """Labels of the pods of one component."""
    return {**labels(experiment), COMPONENT: component}


def selector(labels: dict[str, str]) -> str:
    """``labels`` in the syntax of kubectl's ``--selector``."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def servers(experiment: str) -> str:
    """StatefulSet of the servers, its headless Service and its PodDisruptionBudget."""
    return f"{experiment}-server"


def borrowed_server(experiment: str, number: int) -> str:
    """StatefulSet of one server above ``servers.autoscale.min``, and its Workload in a queue of Kueue."""
    return f"{experiment}-borrow-{number}"


def borrowed_labels(experiment: str, number: int) -> dict[str, str]:
    """Labels of the pods of one server above ``servers.autoscale.min``."""
    return {**component_labels(experiment, SERVER), BORROWED: str(number)}


def pool_servers(experiment: str, pool: str | None) -> str:
    """StatefulSet of a pool of ``servers.pools``; of None that of the other servers."""
    return servers(experiment) if pool is None else f"{experiment}-pool-{pool}"


def server_host(experiment: str, namespace: str, pod: int | str, *, owner: str | None = None) -> str:
    """DNS name of one of the servers' pods; stays the same when it is replaced.

    ``owner``: its StatefulSet; None is ``servers``. The pods of borrowed servers continue the numbers of the others.
    """
    return f"{owner or servers(experiment)}-{pod}.{servers(experiment)}.{namespace}.svc"


def server_address(experiment: str, namespace: str, index: int, *, nodes: int = 1, owner: str | None = None) -> str:
    """``host:port`` of one server of ``nodes`` pods: of its first one."""
    return f"{server_host(experiment, namespace, index * nodes, owner=owner)}:{SERVER_PORT}"


def trainer(experiment: str) -> str:
    """Headless Service of the trainer's pods."""
    return f"{experiment}-trainer"


def trainer_job(experiment: str, attempt: int) -> str:
    """Job of one attempt."""
    return f"{trainer(experiment)}-{attempt}"


def trainer_host(experiment: str, namespace: str, attempt: int, node: int) -> str:
    """DNS name of one pod of the trainer."""
    return f"{trainer_job(experiment, attempt)}-{node}.{trainer(experiment)}.{namespace}.svc"


def gateway(experiment: str) -> str:
    """Service of the session gateway, and NetworkPolicy of its pod."""
    return f"{experiment}-gateway"


def gateway_url(experiment: str, namespace: str) -> str:
    """Base URL of the session gateway."""
    return f"http://{gateway(experiment)}.{namespace}.svc:{GATEWAY_PORT}"


def gateway_key_secret(experiment: str, uid: str) -> str:
    """Secret with the gateway's admin key."""
    return f"{experiment}-{uid[:8]}-gateway-api-key"


def agent(experiment: str, name: str) -> str:
    """StatefulSet of an agent."""
    return f"{experiment}-agent-{name}"


def tool(experiment: str, name: str) -> str:
    """StatefulSet of a tool, and its Service."""
    return f"{experiment}-tool-{name}"


def tool_url(experiment: str, name: str, namespace: str, port: int) -> str:
    """Base URL of a tool."""
    return f"http://{tool(experiment, name)}.{namespace}.svc:{port}"


def agents_policy(experiment: str) -> str:
    """NetworkPolicy of the agents."""
    return f"{experiment}-agents"


def external_agents_policy(experiment: str) -> str:
    """NetworkPolicy of the agents with access to external networks."""
    return f"{experiment}-agents-external"


def tools_policy(experiment: str) -> str:
    """NetworkPolicy of the tools."""
    return f"{experiment}-tools"


def code_config_map(experiment: str, digest: str) -> str:
    """ConfigMap of the packed code with this digest, which ``grpo run`` creates."""
    return f"{experiment}-code-{digest}"


def run_secret(experiment: str, uid: str, digest: str) -> str:
    """Secret with the resolved configuration of this digest and the servers' API key. The UID tells it from that of an
    earlier experiment of the same name."""
    return f"{experiment}-{uid[:8]}-{digest}-api-key"


def volume_claim(experiment: str) -> str:
    """Claim of the volume with the run directory."""
    return f"{experiment}-run"


def workload(experiment: str) -> str:
    """Kueue's Workload, with which the experiment waits in its queue."""
    return f"{experiment}-run"


def pod_group(experiment: str) -> str:
    """Group of the pods that start together."""
    return f"{experiment}-run"


def service_account(experiment: str) -> str:
    """Service account of the pods; its tokens only authenticate progress reports."""
    return f"{experiment}-run"


def network_policy(experiment: str) -> str:
    """NetworkPolicy of the pods."""
    return f"{experiment}-run"


def progress_audience(uid: str) -> str:
    """Audience of the token for progress reports of the experiment with this uid only."""
    return f"progress.areal.dev/{uid}"
