"""What a run asks of a Ray cluster, and what is missing. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from areal_api.experiment import ExperimentSpec
from areal_api.quantities import parse_quantity, quantity_bytes

MAX_NODES_SHOWN = 8
GIB = 2**30
UNITS = {"GPU": "GPUs", "CPU": "CPUs", "memory": "GiB of memory"}
# In `resources` of an experiment: names of Kubernetes that have no meaning for Ray, and names that Ray derives itself.
OF_KUBERNETES = ("ephemeral-storage", "hugepages-")
DERIVED = ("gpu", "gpus", "num_gpus", "cpus", "num_cpus", "node", "object_store_memory")
MAX_NAME = 63
MOST = 2**63 / 10**4  # Ray counts in ten-thousandths


@dataclass(frozen=True)
class Bundle:
    """Resources that one process needs on one node."""

    name: str  # of the process
    resources: Mapping[str, float]  # with Ray's names: CPU, GPU, memory in bytes, and those of the cluster itself
    labels: Mapping[str, str] = field(default_factory=dict)  # that the node must have


@dataclass(frozen=True)
class Node:
    """A node of the cluster."""

    name: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)


def bundles_of(spec: ExperimentSpec) -> list[Bundle]:
    """One bundle per server and per node of the trainer."""
    return [server_bundle(spec, index) for index in range(spec.servers.replicas)] + [
        Bundle(
            "trainer" if node == 0 else f"trainer-{node}",
            resources_of(
                "trainer.resources",
                spec.trainer.resources,
                spec.trainer.processes_per_node,
                cuda=spec.trainer.device == "cuda",
            ),
            spec.trainer.node_selector,
        )
        for node in range(spec.trainer.nodes)
    ]


def server_bundle(spec: ExperimentSpec, index: int) -> Bundle:
    """The bundle of a server."""
    servers = spec.servers
    cuda = servers.device == "cuda"
    resources = resources_of("servers.resources", servers.resources, servers.tensor_parallel, cuda=cuda)
    return Bundle(f"server-{index}", resources, servers.node_selector)


def resources_of(key: str, stated: Mapping[str, Any], processes: int, *, cuda: bool) -> dict[str, float]:
    """CPUs (whole, as Ray wants them) and memory as requested, or a CPU per process; on cuda a GPU per process.

    Other names are resources that the cluster declares itself, such as ``H100`` after ``ray start --resources``. Names
    with a slash are Kubernetes' and not asked of Ray. Raises ``ValueError`` for a name that Ray derives.
    """
    requests = {**(stated.get("limits") or {}), **(stated.get("requests") or {})}
    resources = {"CPU": float(ceil(parse_quantity(requests["cpu"]))) if "cpu" in requests else float(processes)}
    if "memory" in requests:
        resources["memory"] = float(quantity_bytes(requests["memory"]))
    if cuda:
        resources["GPU"] = float(processes)
    for name, value in requests.items():
        if name in ("cpu", "memory") or "/" in name or name.startswith(OF_KUBERNETES):
            continue
        if name.lower() in DERIVED or len(name) > MAX_NAME:
            raise ValueError(
                f"{key}: {name[:MAX_NAME]} cannot be asked of Ray; GPUs follow from servers.tensorParallel and "
                "trainer.processesPerNode, CPUs from cpu; omit it"
            )
        amount = parse_quantity(value)
        if amount:
            resources[name] = float(amount) if amount < 1 else float(ceil(amount))
    for name, value in resources.items():
        if value > MOST:
            raise ValueError(f"{key}: {value:g} of {name} is more than Ray can count; lower it")
    if not any(resources.values()):
        resources["CPU"] = 1.0  # Ray has no bundles of nothing
    return resources


def threads_of(spec: ExperimentSpec) -> int:
    """Compute threads of a process on cpu: the CPUs of its bundle, shared evenly."""
    bundles = bundles_of(spec)
    servers = bundles[0].resources["CPU"] / spec.servers.tensor_parallel
    trainer = bundles[-1].resources["CPU"] / spec.trainer.processes_per_node
    return max(1, int(min(servers, trainer)))


def unplaced(bundles: Sequence[Bundle], nodes: Sequence[Node], *, empty: bool) -> list[Bundle]:
    """The bundles that find no room: each goes to the fullest node on which it fits. ``empty``: as if nothing ran."""
    room = [dict(node.total if empty else node.free) for node in nodes]
    left: list[Bundle] = []
    for bundle in sorted(bundles, key=lambda b: (-b.resources.get("GPU", 0), -b.resources["CPU"])):
        fitting = [
            space
            for node, space in zip(nodes, room, strict=True)
            if bundle.labels.items() <= node.labels.items()
            and all(space.get(name, 0) >= amount for name, amount in bundle.resources.items())
        ]
        if not fitting:
            left.append(bundle)
            continue
        chosen = min(fitting, key=lambda space: (space.get("GPU", 0), space.get("CPU", 0)))
        for name, amount in bundle.resources.items():
            chosen[name] = chosen.get(name, 0) - amount
    return sorted(left, key=lambda bundle: bundle.name)


def shortage(bundles: Sequence[Bundle], nodes: Sequence[Node]) -> str:
    """Which bundles find no room, what they need, and what each node has free."""
    left = unplaced(bundles, nodes, empty=False)
    never = unplaced(bundles, nodes, empty=True)
    if not left:
        return "its free resources change or are held by a run that is just ending"
    missing = {name: sum(bundle.resources.get(name, 0) for bundle in left) for name in asked(left)}
    totals = ", ".join(amount(name, value) for name, value in missing.items() if value)
    needs = "; ".join(need(bundle) for bundle in left[:MAX_NODES_SHOWN])
    more = f"; and {len(left) - MAX_NODES_SHOWN} more" if len(left) > MAX_NODES_SHOWN else ""
    free = "; ".join(f"{node.name} {room(node, bundles)}" for node in nodes[:MAX_NODES_SHOWN])
    others = f"; and {len(nodes) - MAX_NODES_SHOWN} more nodes" if len(nodes) > MAX_NODES_SHOWN else ""
    cause = "the cluster is too small even when nothing else runs" if never else "other work holds them"
    hint = undeclared_gpus(nodes) if "GPU" in missing and never else ""
    return f"missing {totals}: {needs}{more}. Free: {free or 'no node'}{others}; {cause}{hint}"


def undeclared_gpus(nodes: Sequence[Node]) -> str:
    """A hint for clusters that declare their GPUs under another name, of which Ray assigns none to processes."""
    if any(node.total.get("GPU") for node in nodes):
        return ""
    names = {name for node in nodes for name in node.total if "gpu" in name.lower()}
    if not names:
        return ""
    shown = ", ".join(sorted(names)[:MAX_NODES_SHOWN])
    return f"; its nodes declare {shown[:200]} but not Ray's own GPU: start Ray there with --num-gpus"


def asked(bundles: Sequence[Bundle]) -> list[str]:
    """The resources that any bundle asks for, Ray's own first."""
    names = {name for bundle in bundles for name in bundle.resources}
    return [name for name in UNITS if name in names] + sorted(names - set(UNITS))


def need(bundle: Bundle) -> str:
    """``server-1 needs 2 GPUs, 2 CPUs on one node``."""
    parts = [amount(name, bundle.resources[name]) for name in asked([bundle])]
    labels = "".join(f" with the label {key}={value}" for key, value in bundle.labels.items())
    return f"{bundle.name} needs {', '.join(parts)} on one node{labels}"


def room(node: Node, bundles: Sequence[Bundle]) -> str:
    """What is free on a node of what any bundle asks for."""
    return ", ".join(f"{amount(name, node.free.get(name, 0))} of {number(name, node.total)}" for name in asked(bundles))


def number(name: str, resources: Mapping[str, float]) -> str:
    """The amount alone."""
    return amount(name, resources.get(name, 0)).split()[0]


def amount(name: str, value: float) -> str:
    """``2 GPUs``, ``1.5 GiB of memory``."""
    size = value / GIB if name == "memory" else value
    return f"{round(size, 3 if size < 1 else 1):g} {UNITS.get(name, name)}"
