"""What the reconciler asks about manifests and about the objects that were applied from them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from areal_api import conditions, resource_names
from areal_operator.cluster import ApiError
from areal_operator.diagnosis import Reason
from areal_operator.manifests.base import DIGEST, Manifest, digest
from areal_operator.manifests.shared import is_created_by_operator
from areal_operator.observed import ExperimentState, Object, annotation, label
from areal_operator.queueing import kueue
from areal_operator.store import DIGITS, owner_uid, owns_all

CREATE_PODS = ("StatefulSet", "Job")
CLAIM = "PersistentVolumeClaim"
UNPROCESSABLE = 422


def name_taken(manifest: Manifest) -> Reason:
    """Why an object is not created: another one has its name."""
    text = (
        f"{manifest['kind']} {manifest['metadata']['name']} exists and is not this experiment's; delete or rename one"
    )
    return Reason(conditions.NAME_TAKEN, text)


def waves(manifests: Sequence[Manifest]) -> list[list[Manifest]]:
    """First what pods need, then what creates pods, so that no pod waits for its configuration or its claim.

    Workloads of borrowed servers come last: nothing waits for them while Kueue is down.
    """

    def wave(manifest: Manifest) -> int:
        borrowed = manifest["kind"] == kueue.WORKLOAD and label(manifest, resource_names.BORROWED) is not None
        return 2 if borrowed else 1 if manifest["kind"] in CREATE_PODS else 0

    return [[manifest for manifest in manifests if wave(manifest) == number] for number in range(3)]


def is_applied(manifest: Manifest, known: Object) -> bool:
    """Whether an object is what applying ``manifest`` leads to: applied from it, and still owned in every field."""
    digest_of = annotation(known, DIGEST)
    same = digest_of is not None and digest_of == manifest["metadata"].get("annotations", {}).get(DIGEST)
    return same and owns_all(known, manifest)


def digest_of(manifest: Manifest) -> str:
    """A digest of ``manifest``. Its annotations contain one of everything else, unless it is a volume claim."""
    annotations = manifest["metadata"].get("annotations", {})
    return digest(annotations if DIGEST in annotations else manifest)[:DIGITS]


def names_another_object(error: ApiError) -> bool:
    """Whether an update failed because no object, or another one, has this name and uid."""
    return error.status in (404, 409) or (error.status == UNPROCESSABLE and "metadata.uid" in str(error))


def may_change(obj: Object, state: ExperimentState) -> bool:
    """Whether an object belongs to this experiment: it owns it, or it is a claim that no other experiment owns."""
    owner = owner_uid(obj)
    if obj["kind"] == CLAIM:
        return owner in (None, state.uid) and is_created_by_operator(obj)
    return owner == state.uid
