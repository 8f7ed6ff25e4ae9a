"""Whether servers and trainer nodes find room on the nodes of a cluster, packed rather than spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

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
    for group in spec.servers.groups:
        servers, name = group.servers, "server" if group.pool is None else f"pool-{group.pool}"
        if servers.device == "cuda":
            pods += [Pod(f"{name}-{i}", servers.processes_per_pod) for i in range(servers.pods)]
    return sorted(pods, key=lambda pod: -pod.gpus)


def unplaced(pods: Sequence[Pod], nodes: Sequence[int]) -> list[Pod]:
    """The pods that find no node if they are packed as tightly as possible. ``nodes``: free GPUs of each.

    If each size is a multiple of the next smaller one, no packing leaves fewer pods than the best-fitting one, which
    gives each pod, the largest first, the fullest node on which it fits. More than two sizes that are no such multiples
    are rounded down to powers of two: the pods that are left then find no node, but some of the others may not either.
    """
    left = _best_fit(pods, nodes)
    sizes = sorted({pod.gpus for pod in pods}, reverse=True)
    if not left or all(large % small == 0 for large, small in pairwise(sizes)):
        return left
    if len(sizes) > 2:
        rounded = [Pod(pod.name, 2 ** (pod.gpus.bit_length() - 1)) for pod in pods]
        names = {pod.name for pod in _best_fit(rounded, nodes)}
        return [pod for pod in pods if pod.name in names]
    large, small = ([pod for pod in pods if pod.gpus == size] for size in sizes)
    placed = _most_small(len(large), sizes[0], sizes[1], nodes)
    return [*large[len(placed) - 1 :], *small[placed[-1] :]]


def _best_fit(pods: Sequence[Pod], nodes: Sequence[int]) -> list[Pod]:
    free = list(nodes)
    left: list[Pod] = []
    for pod in sorted(pods, key=lambda pod: -pod.gpus):
        fitting = [index for index, gpus in enumerate(free) if gpus >= pod.gpus]
        if not fitting:
            left.append(pod)
            continue
        free[min(fitting, key=lambda index: free[index])] -= pod.gpus
    return left


def _most_small(count: int, large: int, small: int, nodes: Sequence[int]) -> list[int]:
    """Element n: how many pods of ``small`` GPUs fit beside n pods of ``large`` GPUs; n up to ``count``."""
    most = [0]
    for free in nodes:
        longer = [-1] * min(count + 1, len(most) + free // large)
        for before, number in enumerate(most):
            for here in range(min(free // large, count - before) + 1):
                found = number + (free - here * large) // small
                longer[before + here] = max(longer[before + here], found)
        most = longer
    return most
