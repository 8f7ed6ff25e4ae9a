"""Parameters of sampling: the run's own values pass, others are named with the value to use."""

from __future__ import annotations

from typing import Any

import pytest

from areal_api.generation import GenerationHyperparameters
from areal_trainer.gateway.errors import GatewayError
from areal_trainer.gateway.sampling import boolean, check_sampling, integer, stop_texts

GCONFIG = GenerationHyperparameters(temperature=0.7)


def check(**body: Any) -> None:
    check_sampling(body, GCONFIG, known=frozenset({"messages"}))


def test_values_of_the_run_and_nulls_pass() -> None:
    check(messages=[], temperature=0.7, top_p=1, top_k=-1, min_p=0.0, seed=None, logit_bias={})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"temperature": 1.0}, "use 0.7"),
        ({"temperature": "0.7"}, "use 0.7"),
        ({"seed": 1}, "seed is not supported"),
        ({"x" * 500: 1}, "is not supported"),
    ],
)
def test_another_value_is_refused_with_the_fix(body: dict[str, Any], words: str) -> None:
    with pytest.raises(GatewayError, match=words) as caught:
        check(**body)
    assert caught.value.field == next(iter(body))[:80]
    assert len(caught.value.message) < 500
    assert "rollout.agent.unsupported_sampling=ignore" in caught.value.message


@pytest.mark.parametrize("value", [True, 0, 10, 2.0, "2", [2], 2**70])
def test_an_integer_is_one_within_its_bounds(value: Any) -> None:
    assert integer({"n": 2}, "n", low=1, high=9) == 2
    assert integer({}, "n", low=1, high=9) is None
    with pytest.raises(GatewayError, match="use an integer from 1 to 9"):
        integer({"n": value}, "n", low=1, high=9)


def test_a_boolean_is_true_or_false() -> None:
    assert (boolean({}, "stream"), boolean({"stream": True}, "stream")) == (False, True)
    with pytest.raises(GatewayError, match="use true or false"):
        boolean({"stream": 1}, "stream")


def test_stop_texts_are_one_or_several() -> None:
    assert (stop_texts({}, "stop"), stop_texts({"stop": "a"}, "stop")) == ([], ["a"])
    assert stop_texts({"stop": ["a", "b"]}, "stop") == ["a", "b"]
    for value in ("", [""], [1], {"a": 1}, ["a"] * 17, ["a" * 257]):
        with pytest.raises(GatewayError, match=r"^stop (is|has)"):
            stop_texts({"stop": value}, "stop")
