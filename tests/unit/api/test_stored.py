"""Objects of the API server are read although its definition is older or newer than this version."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_api.errors import ConfigError
from areal_api.status import ExperimentStatus
from areal_api.stored import read_experiment, read_status
from hack.testbed.experiment_case import Case


def test_fields_of_a_newer_definition_are_ignored_and_named() -> None:
    changes = {
        "spec.config.actor.new_clip": 0.3,
        "spec.config.newSection": {"a": 1},
        "spec.servers.newField": [],
        "spec.newPolicy": {"x": None},
        "status": {"phase": "Resting"},
    }
    experiment, unknown = read_experiment(Case("", changes).experiment(), source="default/case")
    assert experiment == read_experiment(Case("").experiment(), source="default/case")[0]
    assert set(unknown) == {
        "spec.config.actor.new_clip",
        "spec.config.newSection",
        "spec.servers.newField",
        "spec.newPolicy",
    }


def test_known_fields_are_validated_as_strictly_as_in_a_file() -> None:
    with pytest.raises(ConfigError, match=r"spec\.servers\.replicas: 0 is below 1"):
        read_experiment(Case("", {"spec.servers": {"replicas": 0, "later": 1}}).experiment(), source="default/case")


def test_free_form_fields_keep_every_key() -> None:
    changes = {"spec.servers.args": {"anything": 1}, "spec.servers.nodeSelector": {"zone": "a"}}
    experiment, unknown = read_experiment(Case("", changes).experiment(), source="default/case")
    assert (experiment.spec.servers.args, unknown) == ({"anything": 1}, [])


@pytest.mark.parametrize("body", [{}, {"status": None}, {"status": []}, {"status": {"conditions": 3}}])
def test_a_missing_or_unreadable_status_is_an_empty_one(body: dict[str, Any]) -> None:
    assert read_status(body) == ExperimentStatus()


def test_a_status_keeps_what_this_version_can_read() -> None:
    good = {"type": "Accepted", "status": "True"}
    status = read_status(
        {
            "status": {
                "phase": "Resting",
                "step": 7,
                "reward": "high",
                "conditions": [{"type": "Later", "status": "Maybe"}, good],
                "servers": {"ready": -1, "desired": 2},
                "ofALaterVersion": {},
            }
        }
    )
    assert (status.phase, status.step, status.reward) == ("Pending", 7, None)
    assert [condition.type for condition in status.conditions] == ["Accepted"]
    assert (status.servers.ready, status.servers.desired) == (0, 2)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
STATUS = st.dictionaries(
    st.sampled_from(["phase", "conditions", "servers", "step", "message", "reward", "startTime", "x"]), JSON
)


@given(STATUS)
def test_no_status_is_an_error(status: dict[str, Any]) -> None:
    read_status({"status": status})
