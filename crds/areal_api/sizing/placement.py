"""Whether servers and trainer nodes find room on the nodes of a cluster, packed rather than spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from areal_api.experiment import ExperimentSpec


@dataclass(frozen=True)
class Pod:
    """A process group that needs all of its GPUs on one node."""

    name: str
    gpus: int


def pods_of(spec: ExperimentSpec) -> list[Pod]:
    """The pods of an experiment that need GPUs, the largest first."""
    pods: list[Pod] = []
    if spec.trainer.device == "cuda":
        pods += [Pod(f"trainer-{i}", spec.trainer.processes_per_node) for i in range(spec.trainer.nodes)]
    if spec.servers.device == "cuda":
        pods += [Pod(f"server-{i}", spec.servers.tensor_parallel) for i in range(spec.servers.replicas)]
    return sorted(pods, key=lambda pod: -pod.gpus)


def unplaced(pods: Sequence[Pod], nodes: Sequence[int]) -> list[Pod]:
    """The pods that find no node, if each goes to the fullest node on which it fits. ``nodes``: free GPUs of each."""
    free = list(nodes)
    left: list[Pod] = []
    for pod in sorted(pods, key=lambda pod: -pod.gpus):
        fitting = [index for index, gpus in enumerate(free) if gpus >= pod.gpus]
        if not fitting:
            left.append(pod)
            continue
        free[min(fitting, key=lambda index: free[index])] -= pod.gpus
    return left
