"""Children that servers and trainer share: configuration, key, volume, account, network policy."""

from __future__ import annotations

import base64
from typing import Any

from areal_api import resource_names
from areal_api.quantities import parse_quantity
from areal_operator.manifests.base import Build, Manifest, owned, owner_reference

CONFIG_KEY = "config.yaml"
API_KEY = "api-key"


def config_map(build: Build) -> Manifest:
    """The resolved configuration under a name of its digest: a pod never sees it change."""
    return owned(
        build,
        api_version="v1",
        kind="ConfigMap",
        name=build.config_map,
        labels=resource_names.labels(build.name),
        body={"immutable": True, "data": {CONFIG_KEY: build.config}},
    )


def api_key_secret(build: Build) -> Manifest:
    """The key of the run's servers."""
    return owned(
        build,
        api_version="v1",
        kind="Secret",
        name=resource_names.api_key_secret(build.name),
        labels=resource_names.labels(build.name),
        body={"immutable": True, "type": "Opaque", "data": {API_KEY: encoded(build.api_key)}},
    )


def service_account(build: Build) -> Manifest:
    """The account of the pods. It may do nothing; its only token is the one for progress reports."""
    return owned(
        build,
        api_version="v1",
        kind="ServiceAccount",
        name=resource_names.service_account(build.name),
        labels=resource_names.labels(build.name),
        body={"automountServiceAccountToken": False},
    )


def volume_claim(build: Build, existing: dict[str, Any] | None) -> Manifest:
    """The shared volume. What of an existing claim cannot change is left as it is; it grows, and never shrinks."""
    storage = build.experiment.spec.storage
    spec: dict[str, Any] = {
        "accessModes": list(storage.access_modes),
        "resources": {"requests": {"storage": storage.size}},
    }
    if storage.storage_class_name is not None:
        spec["storageClassName"] = storage.storage_class_name
    if existing is not None:
        found = existing["spec"]
        spec["accessModes"] = found["accessModes"]
        spec.pop("storageClassName", None)
        if found.get("storageClassName") is not None:
            spec["storageClassName"] = found["storageClassName"]
        has = found["resources"]["requests"]["storage"]
        if parse_quantity(has) > parse_quantity(storage.size):
            spec["resources"]["requests"]["storage"] = has
    metadata: dict[str, Any] = {
        "name": resource_names.volume_claim(build.name),
        "namespace": build.namespace,
        "labels": resource_names.labels(build.name),
    }
    if storage.when_deleted == "Delete":
        metadata["ownerReferences"] = [owner_reference(build)]
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def network_policy(build: Build) -> Manifest:
    """Only pods of the same experiment reach its pods, and who reads metrics reaches the servers.

    On a server's port everything but its health and its metrics needs the run's key.
    """
    peers = {"podSelector": {"matchLabels": resource_names.labels(build.name)}}
    ingress: list[Manifest] = [{"from": [peers]}]
    if build.settings.metrics_from:
        ports = [{"protocol": "TCP", "port": resource_names.SERVER_PORT}]
        ingress.append({"from": [dict(peer) for peer in build.settings.metrics_from], "ports": ports})
    return owned(
        build,
        api_version="networking.k8s.io/v1",
        kind="NetworkPolicy",
        name=resource_names.network_policy(build.name),
        labels=resource_names.labels(build.name),
        body={"spec": {**peers, "policyTypes": ["Ingress"], "ingress": ingress}},
    )


def headless_service(build: Build, name: str, component: str, port: int) -> Manifest:
    """DNS names of the pods of one kind, from their start on: a server that loads is waited for by its name."""
    return owned(
        build,
        api_version="v1",
        kind="Service",
        name=name,
        labels=resource_names.component_labels(build.name, component),
        body={
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": True,
                "selector": resource_names.component_labels(build.name, component),
                "ports": [{"name": "http" if component == resource_names.SERVER else "torchrun", "port": port}],
            }
        },
    )


def encoded(text: str) -> str:
    """``text`` as a Secret holds it."""
    return base64.b64encode(text.encode()).decode()
