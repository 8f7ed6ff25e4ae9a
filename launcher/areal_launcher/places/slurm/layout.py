"""Which node of the allocation runs which server and which node of the trainer. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from areal_api.experiment import ExperimentSpec
from areal_launcher.core.plan import gpus_per_server, gpus_per_trainer_node

MAX_NODES = 1024
CPUS_PER_GPU = 4


@dataclass(frozen=True)
class Layout:
    """The nodes of one component of a job, and the processes on each: indices of nodes."""

    nodes: int
    gpus_per_node: int
    cpus_per_node: int
    servers: Sequence[int] = field(default=())
    trainer: Sequence[int] = field(default=())


def layouts(spec: ExperimentSpec, *, gpus: int, server_gpus: int | None = None) -> list[Layout]:
    """One layout, or with ``spec.slurm.servers`` one for the trainer and one for the servers.

    ``gpus`` and ``server_gpus`` are those of a node of each component. Raises ``ValueError`` if something does not fit.
    """
    cluster, slurm = spec.config.cluster, spec.slurm
    per_node = cluster.n_gpus_per_node or gpus
    if slurm.servers is None:
        return [_layout(spec, slurm.nodes or cluster.n_nodes, per_node, trainer=True, servers=True)]
    servers_per_node = cluster.n_gpus_per_node or server_gpus or gpus
    return [
        _layout(spec, slurm.nodes, per_node, trainer=True, servers=False),
        _layout(spec, slurm.servers.nodes, servers_per_node, trainer=False, servers=True),
    ]


def _layout(spec: ExperimentSpec, nodes: int | None, gpus: int, *, trainer: bool, servers: bool) -> Layout:
    trainer_gpus = gpus_per_trainer_node(spec) if trainer else 0
    server_gpus = gpus_per_server(spec) if servers else 0
    ranks = spec.trainer.nodes if trainer else 0
    replicas = spec.servers.replicas if servers else 0
    for key, needed in (("trainer.processesPerNode", trainer_gpus), ("servers.tensorParallel", server_gpus)):
        if needed > gpus:
            raise ValueError(f"{key} is {needed}, but a node has {gpus} GPUs; lower it or choose another partition")
    smallest = max(1, ranks)
    for count in [nodes] if nodes is not None else range(smallest, MAX_NODES + 1):
        placed = _place(count, ranks, replicas, gpus, trainer_gpus, server_gpus)
        if placed is not None:
            used = [0] * count
            processes = [0] * count
            for node in range(ranks):
                used[node] += trainer_gpus
                processes[node] += spec.trainer.processes_per_node
            for node in placed:
                used[node] += server_gpus
                processes[node] += spec.servers.tensor_parallel
            most = spec.config.cluster.n_gpus_per_node or max(used)
            cpus = spec.slurm.cpus_per_node or (CPUS_PER_GPU * most if max(used) else max(processes))
            return Layout(count, most if max(used) else 0, cpus, placed, tuple(range(ranks)))
    raise ValueError(
        f"{replicas} servers of {server_gpus} GPUs and {ranks} trainer nodes of {trainer_gpus} do not fit on "
        f"{nodes} nodes of {gpus} GPUs; raise slurm.nodes, or lower servers.replicas or trainer.nodes"
    )


def _place(
    nodes: int, ranks: int, replicas: int, gpus: int, trainer_gpus: int, server_gpus: int
) -> tuple[int, ...] | None:
    """The node of each server; None if there is no room.

    It is the one with the most free GPUs, then with the fewest processes, then with the fewest servers.
    """
    if ranks > nodes:
        return None
    free = [gpus - trainer_gpus if node < ranks else gpus for node in range(nodes)]
    load = [1 if node < ranks else 0 for node in range(nodes)]
    placed: list[int] = []
    for _ in range(replicas):
        node = min(
            range(nodes),
            key=lambda index: (-free[index] if server_gpus else 0, load[index], placed.count(index), -index),
        )
        if free[node] < server_gpus:
            return None
        free[node] -= server_gpus
        load[node] += 1
        placed.append(node)
    return tuple(placed)
