"""Objects that servers and trainer share: configuration and API key, volume claim, service account, network policy."""

from __future__ import annotations

import base64
from typing import Any

from areal_api import resource_names
from areal_api.experiment import ExperimentSpec
from areal_api.quantities import parse_quantity
from areal_api.sizing.storage import storage_size
from areal_operator.manifests.base import CREATED_FOR, Build, Manifest, owned, owner_reference

CONFIG_KEY = "config.yaml"
API_KEY = "api-key"
DNS_PORT = 53


def run_secret(build: Build) -> Manifest:
    """The resolved configuration and the API key of the run's servers.

    It is immutable and named by the digest of the configuration: a pod never sees it change. The operator may create
    it, and neither read nor change it.
    """
    return owned(
        build,
        api_version="v1",
        kind="Secret",
        name=build.secret,
        labels=resource_names.labels(build.name),
        body={
            "immutable": True,
            "type": "Opaque",
            "data": {CONFIG_KEY: base64_text(build.config), API_KEY: base64_text(build.api_key)},
        },
    )


def service_account(build: Build) -> Manifest:
    """The account of the pods. It has no rights; its only token authenticates progress reports."""
    return owned(
        build,
        api_version="v1",
        kind="ServiceAccount",
        name=resource_names.service_account(build.name),
        labels=resource_names.labels(build.name),
        body={"automountServiceAccountToken": False},
    )


def volume_claim(build: Build, existing: dict[str, Any] | None) -> Manifest | None:
    """The shared volume; None if ``existing`` was not created by the operator and is therefore never changed.

    Of an existing claim only labels, owner and size change, and the size only grows. The experiment becomes the owner
    of a claim only if it created it: a claim of an earlier experiment outlives this one whatever ``whenDeleted`` says.
    """
    storage = build.experiment.spec.storage
    if existing is not None and not is_created_by_operator(existing):
        return None
    found = {} if existing is None else existing["spec"]
    spec: dict[str, Any] = {
        "accessModes": found.get("accessModes") or list(storage.access_modes),
        "resources": {"requests": {"storage": _size(build.experiment.spec, found)}},
    }
    storage_class = storage.storage_class_name if existing is None else found.get("storageClassName")
    if storage_class is not None:
        spec["storageClassName"] = storage_class
    metadata: dict[str, Any] = {
        "name": resource_names.volume_claim(build.name),
        "namespace": build.namespace,
        "labels": resource_names.labels(build.name),
    }
    if existing is None:
        metadata["annotations"] = {CREATED_FOR: build.uid}
    if storage.when_deleted == "Delete" and (existing is None or created_for(existing) == build.uid):
        metadata["ownerReferences"] = [owner_reference(build)]
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def is_created_by_operator(claim: dict[str, Any]) -> bool:
    """Whether the operator created a volume claim: a person who provides one does not label it as managed by us."""
    return (claim["metadata"].get("labels") or {}).get(resource_names.MANAGED_BY) == resource_names.OPERATOR


def created_for(claim: dict[str, Any]) -> str | None:
    """UID of the experiment that a volume claim was created for."""
    uid = (claim["metadata"].get("annotations") or {}).get(CREATED_FOR)
    return None if uid is None else str(uid)


def _size(spec: ExperimentSpec, existing_spec: dict[str, Any]) -> str:
    """The larger of the requested and the existing size; one that cannot be compared stays as it is.

    A default never enlarges an existing claim, whose storage class may not allow that.
    """
    existing = ((existing_spec.get("resources") or {}).get("requests") or {}).get("storage")
    wanted = storage_size(spec)
    if existing is None:
        return wanted
    if spec.storage.size is None:
        return str(existing)
    try:
        return wanted if parse_quantity(wanted) > parse_quantity(existing) else str(existing)
    except ValueError:
        return str(existing)


def network_policy(build: Build) -> Manifest:
    """Only servers and trainer can reach each other; metrics readers can also reach the servers' port.

    On that port everything except health and metrics requires the run's API key. If the operator's settings restrict
    egress, the pods reach each other, DNS, the operator, and the peers in the settings.
    """
    others = {
        "key": resource_names.COMPONENT,
        "operator": "NotIn",
        "values": [resource_names.AGENT, resource_names.TOOL],
    }
    selector = {"matchLabels": resource_names.labels(build.name), "matchExpressions": [others]}
    peers = {"podSelector": selector}
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
        body={"spec": {**peers, "policyTypes": ["Ingress"], "ingress": ingress, **_egress(build, peers)}},
    )


def _egress(build: Build, peers: Manifest) -> Manifest:
    settings = build.settings
    if settings.egress_to is None:
        return {}
    rules: list[Manifest] = [
        {"to": [peers]},
        dns_rule(),
    ]
    if settings.progress_url is not None:
        operator = {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.namespace}},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": resource_names.OPERATOR}},
        }
        rules.append({"to": [operator], "ports": [{"protocol": "TCP", "port": settings.port}]})
    if build.experiment.spec.tools:
        tools = resource_names.component_labels(build.name, resource_names.TOOL)
        rules.append({"to": [{"podSelector": {"matchLabels": tools}}]})
    if settings.egress_to:
        rules.append({"to": [dict(peer) for peer in settings.egress_to]})
    return {"policyTypes": ["Ingress", "Egress"], "egress": rules}


def dns_rule() -> Manifest:
    """Egress to name servers, wherever they are."""
    return {"ports": [{"protocol": protocol, "port": DNS_PORT} for protocol in ("UDP", "TCP")]}


def headless_service(build: Build, name: str, component: str, port: int) -> Manifest:
    """DNS names of one component's pods, published before they are ready: clients wait for a server by its name."""
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
                "ports": [
                    {
                        "name": "http" if component == resource_names.SERVER else "torchrun",
                        "port": port,
                        "protocol": "TCP",
                    }
                ],
            }
        },
    )


def base64_text(text: str) -> str:
    """``text`` as in the ``data`` of a Secret."""
    return base64.b64encode(text.encode()).decode()
