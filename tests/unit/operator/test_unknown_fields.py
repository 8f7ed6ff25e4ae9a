"""Fields of a newer resource definition."""

from __future__ import annotations

from areal_api.experiment import GRPOExperiment
from areal_operator.unknown_fields import MAX_NAMED, without_unknown_fields


def test_known_fields_and_free_form_mappings_are_kept() -> None:
    spec = {"config": {"seed": 1}, "servers": {"args": {"anything": {"at": "all"}}, "podLabels": {"x": "y"}}}
    data = {"metadata": {"name": "x", "anything": 1}, "spec": spec}
    assert without_unknown_fields(data, GRPOExperiment) == (data, ())


def test_unknown_fields_are_named_by_their_path() -> None:
    data = {"spec": {"config": {"actor": {"new": 1}}, "storage": {"new": 2}}, "new": 3}
    known, unknown = without_unknown_fields(data, GRPOExperiment)
    assert known == {"spec": {"config": {"actor": {}}, "storage": {}}}
    assert set(unknown) == {"new", "spec.config.actor.new", "spec.storage.new"}


def test_the_number_of_named_fields_is_bounded() -> None:
    _, unknown = without_unknown_fields({f"new{number}": 1 for number in range(1000)}, GRPOExperiment)
    assert len(unknown) == MAX_NAMED
