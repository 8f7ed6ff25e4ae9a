"""Which fields of existing objects are patched."""

from __future__ import annotations

from typing import Any

from areal_operator.manifests.base import CREATED_FOR
from areal_operator.observed import Object
from areal_operator.patches import changes_of, is_unchanged, mutable_part
from support.operator_objects import UID, claim, decide, manifest, state


def existing(kind: str) -> Object:
    return {"kind": kind, "metadata": {"name": "x", "uid": "u"}}


def claim_manifest(existing_claim: Object | None = None, **changes: Any) -> Object:
    return manifest(decide(state(**changes), *([existing_claim] if existing_claim else [])), "PersistentVolumeClaim")


def test_a_patch_of_a_job_has_no_template() -> None:
    patch = mutable_part(manifest(decide(state()), "Job"), existing("Job"))
    assert patch["spec"] == {"suspend": False}
    assert patch["metadata"]["uid"] == "u"


def test_a_patch_of_a_stateful_set_leaves_out_immutable_fields() -> None:
    patch = mutable_part(manifest(decide(state()), "StatefulSet"), existing("StatefulSet"))
    assert set(patch["spec"]) == {"replicas", "template", "updateStrategy"}


def test_a_patch_of_an_immutable_object_has_metadata_only() -> None:
    assert set(mutable_part(manifest(decide(state()), "Secret"), existing("Secret"))) == {"metadata"}


def test_a_claim_that_agrees_is_not_patched() -> None:
    assert is_unchanged(claim_manifest(claim()), claim())
    assert not is_unchanged(claim_manifest(claim(), storage__size="200Gi"), claim())


def test_the_owner_of_a_claim_is_added_and_removed_and_others_stay() -> None:
    other = {"kind": "Backup", "name": "b", "uid": "backup"}
    bare = claim()
    bare["metadata"]["ownerReferences"] = [other]
    added = changes_of(claim_manifest(bare, storage__whenDeleted="Delete"), bare)
    owners = added["metadata"]["ownerReferences"]
    assert [owner["uid"] for owner in owners] == ["backup", UID]
    owned = claim()
    owned["metadata"]["ownerReferences"] = owners
    removed = changes_of(claim_manifest(owned, storage__whenDeleted="Retain"), owned)
    assert removed["metadata"]["ownerReferences"] == [other]
    assert owned["metadata"]["annotations"][CREATED_FOR] == UID
