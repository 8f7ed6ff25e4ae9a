"""Experiments with additions to their pods, and with servers on several nodes: a part of ``experiment_cases``."""

from __future__ import annotations

from hack.testbed.experiment_case import Case

_PULL = {"name": "pull", "image": "i", "command": ["true"], "volumeMounts": [{"name": "m", "mountPath": "/m"}]}
_PROXY = {"name": "proxy", "image": "p", "restartPolicy": "Always", "readinessProbe": {"tcpSocket": {"port": 8080}}}
_NEAR = {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "rack"}]}
POD_CASES = [
    Case("an init container and a sidecar", {"spec.trainer.initContainers": [_PULL, _PROXY]}),
    Case(
        "two init containers of one name",
        {"spec.servers.initContainers": [_PULL, _PULL]},
        "initContainers has several entries with the name pull",
        "servers.initContainers has a name twice",
    ),
    Case(
        "an init container with a name of the operator's",
        {"spec.trainer.initContainers": [{**_PULL, "name": "prepare"}]},
        "name is prepare, a name that the operator reserves",
        "trainer.initContainers has a name twice, or one of server, trainer, prepare",
    ),
    Case(
        "a probe of an init container",
        {"spec.servers.initContainers": [{**_PULL, "readinessProbe": {"tcpSocket": {"port": 1}}}]},
        "readinessProbe of pull has no effect",
        "a probe in servers.initContainers needs restartPolicy Always",
    ),
    Case(
        "a probe of an init container of the trainer",
        {"spec.trainer.initContainers": [{**_PULL, "readinessProbe": {"tcpSocket": {"port": 1}}}]},
        "readinessProbe of pull has no effect",
        "a probe in trainer.initContainers needs restartPolicy Always",
    ),
    Case("an init container without an image", {"spec.servers.initContainers": [{"name": "a"}]}, "image"),
    Case(
        "a claim of devices",
        {
            "spec.servers.resources": {"claims": [{"name": "gpu"}]},
            "spec.servers.resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "h200"}],
        },
    ),
    Case(
        "a claim that is not declared",
        {"spec.trainer.resources": {"claims": [{"name": "gpu"}]}},
        "resources.claims names gpu, which resourceClaims lacks (empty)",
        "resources.claims of trainer names a claim",
    ),
    Case(
        "a claim of the servers that is not declared",
        {"spec.servers.resources": {"claims": [{"name": "gpu"}]}},
        "resources.claims names gpu, which resourceClaims lacks (empty)",
        "resources.claims of servers names a claim",
    ),
    Case(
        "a claim of an init container that is not declared",
        {"spec.trainer.initContainers": [{**_PULL, "resources": {"claims": [{"name": "gpu"}]}}]},
        "resources.claims names gpu",
        "resources.claims of trainer names a claim",
    ),
    Case(
        "a claim from nowhere",
        {"spec.trainer.resourceClaims": [{"name": "gpu"}]},
        "gpu needs exactly one of resourceClaimName and resourceClaimTemplateName",
        "trainer.resourceClaims needs exactly one",
    ),
    Case(
        "a claim of the servers from two places",
        {
            "spec.servers.resourceClaims": [
                {"name": "gpu", "resourceClaimName": "one", "resourceClaimTemplateName": "two"}
            ]
        },
        "gpu needs exactly one of resourceClaimName and resourceClaimTemplateName",
        "servers.resourceClaims needs exactly one",
    ),
    Case("packing by racks", {"spec.packing": {"topologyKey": "rack", "required": True}}),
    Case("packing by nothing", {"spec.packing": {"topologyKey": ""}}, "is shorter than 1 character"),
    Case(
        "packing beside an affinity to pods",
        {"spec.packing": {"topologyKey": "rack"}, "spec.servers.affinity": {"podAffinity": _NEAR}},
        "packing.topologyKey is rack, and servers.affinity has podAffinity",
        "packing and affinity.podAffinity",
    ),
    Case("servers on two nodes each", {"spec.servers": {"tensorParallel": 16, "nodesPerServer": 2}}),
    Case(
        "GPUs that the nodes of a server cannot share",
        {"spec.servers": {"tensorParallel": 3, "nodesPerServer": 2}},
        "servers.tensorParallel is 3, not a multiple of servers.nodesPerServer 2",
        "servers.tensorParallel is not a multiple of servers.nodesPerServer",
    ),
    Case(
        "more pods of servers than are possible",
        {"spec.servers": {"tensorParallel": 2, "nodesPerServer": 2, "maxReplicas": 513}},
        "the servers have 1026 pods (513 servers × servers.nodesPerServer 2), above 1024",
        "the servers have more than 1024 pods",
    ),
    Case(
        "servers on several nodes with a volume of one",
        {
            "spec.servers": {"tensorParallel": 2, "nodesPerServer": 2},
            "spec.storage": {"accessModes": ["ReadWriteOnce"]},
        },
        "storage.accessModes is [ReadWriteOnce], servers.nodesPerServer 2",
        "servers.nodesPerServer above 1 needs ReadWriteMany",
    ),
    Case(
        "servers on several nodes that download weights",
        {"spec.servers": {"tensorParallel": 2, "nodesPerServer": 2}, "spec.storage": {"shared": False}},
        "storage.shared is false, servers.nodesPerServer 2",
        "storage.shared true",
    ),
    Case(
        "as many GPUs as the nodes of a server have",
        {
            "spec.config.cluster": {"n_gpus_per_node": 8},
            "spec.servers": {"tensorParallel": 16, "nodesPerServer": 2},
        },
    ),
]
