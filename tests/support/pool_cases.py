"""Experiments with pools of servers: a part of ``experiment_cases``."""

from __future__ import annotations

from typing import Any

from areal_api.server_pools import MAX_POOLS
from hack.testbed.experiment_case import Case

_POOLS = "spec.servers.pools"


def _pool(**keys: Any) -> list[dict[str, Any]]:
    return [{"name": "big", **keys}]


POOL_CASES = [
    Case(
        "pools of servers with other sizes, nodes and devices",
        {
            "spec.servers": {"replicas": 4, "nodeSelector": {"gpu": "l40s"}},
            _POOLS: [
                {"name": "h100", "replicas": 2, "tensorParallel": 4, "nodeSelector": {"gpu": "h100"}, "args": {"a": 1}},
                {"name": "host", "device": "cpu", "tolerations": [], "resources": {"requests": {"cpu": "8"}}},
            ],
            "spec.config.sglang.dtype": "bfloat16",
        },
    ),
    Case("no pools", {_POOLS: []}),
    Case("as many pools as allowed", {_POOLS: [{"name": f"p{i}"} for i in range(MAX_POOLS)]}),
    Case("more pools than allowed", {_POOLS: [{"name": f"p{i}"} for i in range(MAX_POOLS + 1)]}, "at most 8"),
    Case("a pool without a name", {_POOLS: [{"replicas": 1}]}, "name"),
    Case("a pool without servers", {_POOLS: _pool(replicas=0)}, "0 is below 1"),
    Case("a pool with a name of capitals", {_POOLS: [{"name": "H100"}]}, "H100"),
    Case(
        "two pools of one name",
        {_POOLS: [{"name": "a"}, {"name": "a"}]},
        "servers.pools has several entries with the name a",
        "servers.pools has several entries",
    ),
    Case("names of 46 letters", {"metadata.name": "a" * 40, _POOLS: [{"name": "b" * 6}]}),
    Case(
        "names of 47 letters",
        {"metadata.name": "a" * 40, _POOLS: [{"name": "b" * 7}]},
        "have together more than 46 characters",
        "more than 46 characters",
    ),
    Case(
        "pools of an elastic number of servers",
        {"spec.servers.autoscale": {"min": 1, "max": 2}, _POOLS: _pool()},
        "servers.autoscale is set, and servers.pools is not empty",
        "servers.autoscale and servers.pools exclude each other",
    ),
    Case(
        "a pool whose nodes cannot share its GPUs",
        {"spec.servers": {"tensorParallel": 4, "nodesPerServer": 2}, _POOLS: _pool(tensorParallel=3)},
        "servers.pools[big].tensorParallel is 3, not a multiple of servers.pools[big].nodesPerServer 2",
        "tensorParallel of a pool of servers is not a multiple",
    ),
    Case(
        "a pool of servers on two nodes without the volume",
        {"spec.storage.shared": False, _POOLS: _pool(tensorParallel=2, nodesPerServer=2)},
        "storage.shared is false, servers.pools[big].nodesPerServer 2",
        "a pool of servers with nodesPerServer above 1",
    ),
    Case(
        "more GPUs in pools than the cluster has",
        {"spec.config.cluster": {"n_nodes": 1, "n_gpus_per_node": 8}, _POOLS: _pool(replicas=2, tensorParallel=4)},
        "10 GPUs are needed (9 by servers, 1 by the trainer)",
        "more GPUs",
    ),
    Case(
        "a server of a pool with more GPUs than a node",
        {"spec.config.cluster.n_gpus_per_node": 4, _POOLS: _pool(tensorParallel=8)},
        "servers.pools[big].tensorParallel is 8, above cluster.n_gpus_per_node 4",
        "tensorParallel of a pool of servers is above",
    ),
    Case(
        "more pods in pools than allowed",
        {_POOLS: _pool(replicas=1024)},
        "the servers have 1025 pods (1 servers × servers.nodesPerServer 1 and 1024 of servers.pools)",
        "more than 1024 pods",
    ),
    Case(
        "a broadcast to a pool of another device",
        {
            "spec.config.actor.weight_update_mode": "distributed",
            "spec.config.sglang.dtype": "bfloat16",
            _POOLS: _pool(device="cpu"),
        },
        "actor.weight_update_mode is distributed, servers.pools[big].device cpu, trainer.device cuda",
        "weight_update_mode distributed",
    ),
    Case(
        "a pool with an affinity beside packing",
        {
            "spec.packing": {"topologyKey": "rack"},
            _POOLS: _pool(affinity={"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}),
        },
        "packing.topologyKey is rack, and servers.pools[big].affinity has podAffinity",
        "packing and affinity.podAffinity of a pool",
    ),
    Case(
        "claims of a pool",
        {
            _POOLS: _pool(
                resourceClaims=[{"name": "gpu", "resourceClaimTemplateName": "h100"}],
                resources={"claims": [{"name": "gpu"}]},
            )
        },
    ),
    Case(
        "a claim that only servers has",
        {
            "spec.servers": {
                "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "l40s"}],
                "resources": {"claims": [{"name": "gpu"}]},
            },
            _POOLS: _pool(resourceClaims=[]),
        },
        "servers.pools[big]: resources.claims names gpu, which resourceClaims lacks",
        "resources.claims of a pool of servers",
    ),
    Case(
        "a claim of a pool without a source",
        {_POOLS: _pool(resourceClaims=[{"name": "gpu"}])},
        "resourceClaimName",
        "an entry of resourceClaims of a pool",
    ),
]
