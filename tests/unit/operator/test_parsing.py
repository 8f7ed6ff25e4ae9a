"""Experiments from the API server: for any contents, the error can be shown in the status."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_api.errors import ConfigError
from areal_operator.parsing import UnknownPhaseError, parsed_spec, state_of, status_of
from hack.testbed.experiment_case import Case

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
SECTIONS = ["servers", "trainer", "storage", "runPolicy", "config"]
KEYS = ["servers.args", "servers.resources", "trainer.tolerations", "config.actor", "config.workflow", "storage.size"]


def body(**changes: Any) -> dict[str, Any]:
    """An experiment as the API server returns it."""
    data = Case("", {f"spec.{key.replace('__', '.')}": value for key, value in changes.items()}).experiment()
    return {**data, "metadata": {**data["metadata"], "namespace": "ns", "uid": "u", "generation": 1}}


def nested(levels: int, kind: type) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value} if kind is dict else [value]
    return value


@pytest.mark.parametrize("kind", [dict, list])
@pytest.mark.parametrize("key", ["affinity", "args", "tolerations", "newKey"])
def test_a_deeply_nested_spec_is_a_configuration_error(key: str, kind: type) -> None:
    data = body()
    data["spec"].setdefault("servers", {})[key] = nested(9000, kind)
    with pytest.raises(ConfigError, match="nested more than 64 levels deep"):
        parsed_spec(data)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SECTIONS + KEYS), ANYTHING)
def test_any_value_is_accepted_or_a_configuration_error(key: str, value: Any) -> None:
    with suppress(ConfigError):
        state_of(body(**{key.replace(".", "__"): value}))


def test_fields_of_a_newer_definition_are_left_out_and_named() -> None:
    data = body()
    data["spec"]["newSection"] = {"x": 1}
    data["spec"].setdefault("servers", {})["newKey"] = 1
    data["spec"]["config"].setdefault("actor", {})["new_key"] = True
    experiment, unknown = parsed_spec(data)
    assert experiment.name == "case"
    assert set(unknown) == {"spec.newSection", "spec.servers.newKey", "spec.config.actor.new_key"}


def test_unreadable_fields_of_the_status_are_left_out() -> None:
    status = {"phase": "Running", "attempt": 2, "step": "many", "newField": 1, "servers": {"ready": -1}}
    parsed = status_of({**body(), "status": status})
    assert (parsed.phase, parsed.attempt, parsed.step, parsed.servers.ready) == ("Running", 2, None, 0)


@pytest.mark.parametrize(
    "status", [{"phase": "Paused"}, {"phase": "Running", "attempt": "x"}, {"outcome": {"result": "?"}}]
)
def test_an_unreadable_phase_or_attempt_is_not_replaced_by_a_default(status: dict[str, Any]) -> None:
    with pytest.raises(UnknownPhaseError):
        status_of({**body(), "status": status})
