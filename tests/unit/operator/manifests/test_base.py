"""What all manifests share: owner, labels, digest, images."""

from __future__ import annotations

import pytest

from areal_api import resource_names
from areal_operator.settings import Settings
from support.operator_objects import decide, named, state


def test_an_image_comes_from_the_spec_or_the_settings_or_is_an_error() -> None:
    settings = Settings.from_env({"AREAL_SERVER_IMAGE_CPU": "cpu:1"})
    assert settings.image("server", "cpu", None) == "cpu:1"
    assert settings.image("server", "cpu", "mine") == "mine"
    with pytest.raises(ValueError, match=r"trainer\.image is not set .*AREAL_TRAINER_IMAGE of the operator"):
        settings.image("trainer", "cuda", None)


def test_children_are_owned_and_carry_the_labels() -> None:
    plan = decide(state())
    for obj in plan.objects:
        assert obj["metadata"]["labels"][resource_names.EXPERIMENT] == "case"
        if obj["kind"] != "PersistentVolumeClaim":
            assert obj["metadata"]["ownerReferences"][0]["uid"] == "uid-1"
            assert "blockOwnerDeletion" not in obj["metadata"]["ownerReferences"][0]
    assert len(set(named(plan))) == len(plan.objects)
