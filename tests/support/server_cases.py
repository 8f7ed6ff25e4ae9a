"""Experiments with bounds of the number of servers: a part of ``experiment_cases``."""

from __future__ import annotations

from hack.testbed.experiment_case import Case

SERVER_CASES = [
    Case("as many servers as allowed", {"spec.servers": {"replicas": 2, "maxReplicas": 2}}),
    Case(
        "more servers than allowed",
        {"spec.servers": {"replicas": 3, "maxReplicas": 2}},
        "servers.replicas is 3, above servers.maxReplicas 2",
        "servers.replicas",
    ),
    Case("as few servers as wanted", {"spec.servers": {"replicas": 2, "minReplicas": 2}}),
    Case(
        "more servers at least than wanted",
        {"spec.servers": {"replicas": 2, "minReplicas": 3}},
        "servers.minReplicas is 3, above servers.replicas 2",
        "servers.minReplicas",
    ),
    Case("a number of servers between bounds", {"spec.servers": {"replicas": 2, "autoscale": {"min": 2, "max": 8}}}),
    Case("no bounds of the number of servers", {"spec.servers": {"replicas": 2, "autoscale": None}}),
    Case(
        "bounds of the number of servers that exclude each other",
        {"spec.servers": {"replicas": 2, "autoscale": {"min": 3, "max": 2}}},
        "servers.autoscale.min is 3, above servers.autoscale.max 2",
        "servers.autoscale.min",
    ),
    *(
        Case(
            f"{replicas} servers outside of 2 to 4",
            {"spec.servers": {"replicas": replicas, "autoscale": {"min": 2, "max": 4}}},
            f"servers.replicas is {replicas}, which is not within servers.autoscale, 2 to 4",
            "not within servers.autoscale",
        )
        for replicas in (1, 5)
    ),
    *(
        Case(
            f"both autoscale and {key}",
            {"spec.servers": {"replicas": 2, key: 2, "autoscale": {"min": 2, "max": 4}}},
            f"servers.{key} is 2, and servers.autoscale.{bound} {value}; remove {key}",
            "autoscale has min and max",
        )
        for key, bound, value in (("minReplicas", "min", 2), ("maxReplicas", "max", 4))
    ),
    Case(
        "borrowed servers with more pods than allowed",
        {"spec.servers": {"tensorParallel": 8, "nodesPerServer": 8, "autoscale": {"min": 1, "max": 129}}},
        "the servers have 1032 pods",
        "more than 1024 pods",
    ),
    Case("no bound of the servers", {"spec.servers": {"replicas": 3, "maxReplicas": None}}),
    Case("no servers", {"spec.servers.replicas": 0}, "0 is below 1"),
    Case("an unknown device", {"spec.servers.device": "tpu"}, "'tpu' is not one of 'cuda' or 'cpu'"),
]
