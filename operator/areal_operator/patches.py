"""Merge patches of existing objects: only what the API server lets change."""

from __future__ import annotations

from typing import Any

from areal_operator.manifests import pod_groups
from areal_operator.manifests.base import Manifest
from areal_operator.observed import Object

# Fields of ``spec`` (or of the object) that are mutable; whole = everything below spec.
MUTABLE_SPEC: dict[str, tuple[str, ...]] = {
    "Job": ("suspend",),
    "StatefulSet": ("replicas", "template", "updateStrategy"),
    "PersistentVolumeClaim": ("resources",),
    **dict.fromkeys(pod_groups.KINDS, ("minMember", "queue", "priorityClassName")),
    "Service": ("publishNotReadyAddresses", "selector", "ports"),
    "NetworkPolicy": ("podSelector", "policyTypes", "ingress", "egress"),
    "PodDisruptionBudget": ("maxUnavailable", "selector", "unhealthyPodEvictionPolicy"),
}


def mutable_part(manifest: Manifest, known: Object) -> Manifest:
    """The mutable fields of ``manifest``; its uid is that of ``known``, so that no successor is patched."""
    metadata = manifest["metadata"]
    patch: Manifest = {
        "metadata": {
            "uid": known["metadata"]["uid"],
            "labels": metadata.get("labels", {}),
            "annotations": metadata.get("annotations", {}),
        }
    }
    fields = MUTABLE_SPEC.get(manifest["kind"], ())
    spec = {field: manifest["spec"][field] for field in fields if field in manifest.get("spec", {})}
    return {**patch, "spec": spec} if spec else patch


def changes_of(manifest: Manifest, known: Object) -> Manifest:
    """Like ``mutable_part``, with the owner of a volume claim: other owners stay, ours is added or removed."""
    patch = mutable_part(manifest, known)
    if manifest["kind"] == "PersistentVolumeClaim":
        ours: list[dict[str, Any]] = manifest["metadata"].get("ownerReferences", [])
        existing: list[dict[str, Any]] = known["metadata"].get("ownerReferences") or []
        others = [owner for owner in existing if not owner.get("controller")]
        if [owner["uid"] for owner in [*others, *ours]] != [owner["uid"] for owner in existing]:
            patch["metadata"]["ownerReferences"] = [*others, *ours] or None
    return patch


def is_unchanged(manifest: Manifest, claim: Object) -> bool:
    """Whether an existing volume claim already agrees with its manifest in all mutable fields."""
    patch = changes_of(manifest, claim)
    labels: dict[str, Any] = claim["metadata"].get("labels") or {}
    requests = ((claim.get("spec") or {}).get("resources") or {}).get("requests") or {}
    return (
        requests.get("storage") == patch["spec"]["resources"]["requests"]["storage"]
        and patch["metadata"]["labels"].items() <= labels.items()
        and "ownerReferences" not in patch["metadata"]
    )
