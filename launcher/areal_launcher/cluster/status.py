"""`grpo status --on kubernetes`: the state of experiments in a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from areal_api import resource_names
from areal_api.experiment import KIND
from areal_api.status import TERMINAL_PHASES, ExperimentStatus, Phase
from areal_launcher.cluster.checks import check_api
from areal_launcher.cluster.client import ApiError, Cluster, ClusterTarget, Object
from areal_launcher.cluster.follow import status_of
from areal_launcher.cluster.logs import container_runs, pods_of
from areal_launcher.console import console_for
from areal_launcher.display import format_duration
from areal_launcher.run_status import RunState, RunStatus, ServerStatus
from areal_launcher.terminal_text import printable_line

MAX_CONDITIONS = 100
COLUMNS = ("NAMESPACE", "NAME", "PHASE", "STEP", "REWARD", "SERVERS", "AGE", "MESSAGE")


STATES: dict[Phase, RunState] = {
    "Pending": "pending",
    "Queued": "pending",
    "Starting": "pending",
    "Running": "running",
    "Suspended": "stopped",
    "Succeeded": "succeeded",
    "Failed": "failed",
}


def status(name: str | None, target: ClusterTarget, *, as_json: bool = False) -> int:
    """Print a table of experiments, or the details of one; ``as_json``: those of one as JSON."""
    cluster = Cluster.connect(target)
    check_api(cluster)
    console = console_for()
    if name is None:
        return print_all(cluster, target, console)
    body = cluster.get(KIND, cluster.namespace, name)
    if body is None:
        raise ValueError(
            f"{name}: no such experiment in namespace {cluster.namespace}; grpo status --on kubernetes lists them"
        )
    if as_json:
        pods = pods_of(cluster, cluster.namespace, name, resource_names.SERVER)
        print(run_status(body, pods).as_json())
    else:
        print_one(cluster, body, console)
    return 0


def run_status(body: Object, pods: Sequence[Object]) -> RunStatus:
    """The status of an experiment and its server pods in the shape that all places share."""
    state, name = status_of(body), str(body["metadata"]["name"])
    return RunStatus(
        run=name,
        state="collapsed" if state.phase == "Failed" and state.collapsed else STATES[state.phase],
        message=state.message,
        step=state.step,
        total_steps=state.total_steps,
        reward=state.reward,
        eval_reward=state.eval_reward,
        staleness=state.staleness,
        tokens_per_second=state.tokens_per_second,
        servers=[server_status(pod, name) for pod in pods],
    )


def server_status(pod: Object, experiment: str) -> ServerStatus:
    """A server, from its pod."""
    found = pod.get("status") or {}
    conditions = {one.get("type"): one.get("status") for one in found.get("conditions") or ()}
    runs = container_runs(pod)
    waits = any(run.restarts and run.state == "waiting" for run in runs)
    address = f"{found['podIP']}:{resource_names.SERVER_PORT}" if found.get("podIP") else None
    return ServerStatus(
        name=str(pod["metadata"]["name"]).removeprefix(f"{experiment}-"),
        address=address,
        state="ready" if conditions.get("Ready") == "True" else "backoff" if waits else "starting",
        restarts=sum(run.restarts for run in runs),
    )


def print_all(cluster: Cluster, target: ClusterTarget, console: Console) -> int:
    """Print the experiments of --namespace, or of all namespaces."""
    try:
        experiments = cluster.list(KIND, target.namespace)
    except ApiError as error:
        if error.code != 403 or target.namespace is not None:
            raise
        console.print(f"{error}; showing namespace {cluster.namespace} only", markup=False, soft_wrap=True)
        experiments = cluster.list(KIND, cluster.namespace)
    if not experiments:
        console.print("no experiments", markup=False)
        return 0
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in COLUMNS:
        table.add_column(column, no_wrap=column != "MESSAGE", overflow="fold")
    now_s = cluster.time_s()
    for cells in sorted(row(body, now_s) for body in experiments):
        table.add_row(*(Text(printable_line(cell)) for cell in cells))
    console.print(table)
    return 0


def row(body: Object, now_s: float) -> list[str]:
    """The columns of one experiment."""
    state, metadata = status_of(body), body["metadata"]
    return [
        str(metadata.get("namespace")),
        str(metadata["name"]),
        state.phase,
        state.progress,
        "" if state.reward is None else f"{state.reward:.3f}",
        state.servers.summary,
        age(str(metadata.get("creationTimestamp")), now_s),
        state.message,
    ]


def age(since: str, now_s: float) -> str:
    """Time since a timestamp."""
    try:
        return format_duration(now_s - datetime.fromisoformat(since).timestamp())
    except (ValueError, OverflowError):
        return "?"


def status_metrics(state: ExperimentStatus) -> list[tuple[str, str]]:
    """Labels and values of the latest step; missing ones are omitted."""
    metrics = [
        ("step", state.progress or None),
        ("reward", None if state.reward is None else f"{state.reward:.3f}"),
        ("eval", None if state.eval_reward is None else f"{state.eval_reward:.3f}"),
        ("tok/s", None if state.tokens_per_second is None else f"{state.tokens_per_second:,.0f}"),
        ("staleness", None if state.staleness is None else f"{state.staleness:.2f}"),
        ("servers", state.servers.summary or None),
        ("behind", str(state.servers_behind) if state.servers_behind else None),
        ("restarts", str(state.restarts) if state.restarts else None),
        ("disruptions", str(state.disruptions) if state.disruptions else None),
    ]
    return [(label, text) for label, text in metrics if text is not None]


def print_one(cluster: Cluster, body: Object, console: Console) -> None:
    """Print phase, metrics, conditions and pods of an experiment."""
    state, metadata = status_of(body), body["metadata"]
    now_s = cluster.time_s()
    head = "  ".join([state.phase, *(f"{label} {text}" for label, text in status_metrics(state))])
    console.print(f"{metadata['name']}  {head}", markup=False, soft_wrap=True)
    if state.message:
        console.print(state.message, markup=False, soft_wrap=True)
    for condition in state.conditions[:MAX_CONDITIONS]:
        since = age(condition.last_transition_time, now_s) if condition.last_transition_time else ""
        line = f"{condition.type}  {condition.status}  {condition.reason}  {since}  {condition.message}"
        console.print(f"  {printable_line(line)}", markup=False, soft_wrap=True)
    for pod in pods_of(cluster, str(metadata.get("namespace")), metadata["name"]):
        console.print(f"  {pod_line(pod)}", markup=False, soft_wrap=True)
    if state.phase in TERMINAL_PHASES:
        claim = resource_names.volume_claim(metadata["name"])
        console.print(
            f"  files: volume claim {claim}; run grpo run with the same experiment to fetch the results", markup=False
        )


def pod_line(pod: Object) -> str:
    """Name, node, state and restarts of a pod."""
    state = pod.get("status") or {}
    restarts = sum(run.restarts for run in container_runs(pod))
    node = (pod.get("spec") or {}).get("nodeName") or "no node"
    return f"pod {pod['metadata']['name']}  {node}  {state.get('phase')}  restarts {restarts}"
