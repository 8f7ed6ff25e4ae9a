"""Settings of the servers that do not fit the model or the machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_api.experiment import ExperimentSpec
from areal_launcher.core.server_checks import LONGER_CONTEXT, check_heads, check_servers, positions


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def spec(model: Path, *, servers: dict[str, Any] | None = None, **sections: Any) -> ExperimentSpec:
    config = {
        "experiment_name": "e",
        "actor": {"path": str(model)},
        "train_dataset": {"path": "d", "batch_size": 8},
        "gconfig": {"max_new_tokens": 64},
    }
    values = {"config": {**config, **sections}, "servers": {"device": "cpu", **(servers or {})}}
    return ExperimentSpec.model_validate(values)


def test_settings_that_fit_are_accepted(model: Path) -> None:
    check_servers(spec(model, servers={"tensorParallel": 2}, sglang={"context_length": 512}), cores=2)
    check_servers(spec(Path("a/name-on-the-hub"), servers={"tensorParallel": 2}), cores=2)


@pytest.mark.parametrize(
    ("servers", "sections", "message"),
    [
        ({"tensorParallel": 3}, {}, "servers.tensorParallel: 3 does not divide .* set it to one of 1, 2, 4"),
        ({"tensorParallel": 8}, {}, "servers.tensorParallel: 8 on cpu needs as many cores, this process has 4"),
        (
            {},
            {"sglang": {"context_length": 513}},
            "sglang.context_length: 513 is longer than",
        ),
        ({}, {"gconfig": {"max_new_tokens": 512}}, "gconfig.max_new_tokens: 512 leaves no room for a prompt"),
    ],
)
def test_settings_that_the_server_would_refuse_are_refused(
    model: Path, servers: dict[str, Any], sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_servers(spec(model, servers=servers, **sections), cores=4)


def test_a_longer_context_may_be_asked_for_explicitly(model: Path) -> None:
    env = [{"name": LONGER_CONTEXT, "value": "1"}]
    check_servers(spec(model, servers={"env": env}, sglang={"context_length": 4096}), cores=4)


values = st.none() | st.booleans() | st.integers(-5, 64) | st.floats() | st.text(max_size=3) | st.just({"factor": 2.0})
keys = st.sampled_from(["num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rope_scaling"])


@given(st.dictionaries(keys, values), st.integers(1, 8))
def test_an_odd_config_is_never_a_crash(model: dict[str, Any], tensor_parallel: int) -> None:
    try:
        check_heads(model, tensor_parallel)
    except ValueError as error:
        assert "servers.tensorParallel" in str(error)  # noqa: PT017
    assert positions(model) is None or positions(model) > 0  # type: ignore[operator]
