"""Dotted keys of the models, their types, and the nearest key to an unknown one."""

from __future__ import annotations

from typing import Any

import pytest

from areal_api.config import GRPOConfig
from areal_api.experiment import ExperimentSpec
from areal_api.keys import fields, known, nearest_key, type_of, without_unknown


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("actor.lr", "actor.optimizer.lr"),
        ("actor.pth", "actor.path"),
        ("gconfg.top_p", "gconfig.top_p"),
        ("n_samples", "gconfig.n_samples"),
        ("rollout.max_head_offpolicynes", "rollout.max_head_offpolicyness"),
        ("zzz", None),
    ],
)
def test_the_nearest_key_is_the_one_that_was_meant(key: str, meant: str | None) -> None:
    assert nearest_key(GRPOConfig, key) == meant


def test_a_very_long_key_is_compared_with_none() -> None:
    assert nearest_key(GRPOConfig, "actor." + "x" * 1_000_000) is None


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("seed", int),
        ("actor.optimizer.lr", float),
        ("workflow.kwargs.any.depth", Any),
        ("no_such", None),
        ("seed.below", None),
    ],
)
def test_a_key_has_the_type_of_its_field(key: str, expected: Any) -> None:
    assert type_of(GRPOConfig, key) is expected
    assert known(GRPOConfig, key) is (expected is not None)


def test_values_of_a_free_form_mapping_have_its_type() -> None:
    assert type_of(ExperimentSpec, "servers.nodeSelector.zone") is str


def test_every_key_of_a_model_is_known_to_it() -> None:
    assert all(known(ExperimentSpec, key) for key, _, _ in fields(ExperimentSpec))


def test_unknown_keys_of_items_are_removed_and_named() -> None:
    kept, unknown = without_unknown(ExperimentSpec, {"agents": [{"name": "a"}, {"name": "b", "new": 1}, 3]})
    assert (kept, unknown) == ({"agents": [{"name": "a"}, {"name": "b"}, 3]}, ["agents[1].new"])


def test_unknown_keys_are_removed_and_named_in_every_section() -> None:
    data = {"seed": 1, "new": 2, "actor": {"path": "m", "newer": 3}, "workflow": {"kwargs": {"kept": 4}}}
    kept, unknown = without_unknown(GRPOConfig, data)
    assert kept == {"seed": 1, "actor": {"path": "m"}, "workflow": {"kwargs": {"kept": 4}}}
    assert unknown == ["new", "actor.newer"]
