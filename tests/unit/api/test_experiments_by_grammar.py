"""Property tests: experiments and overrides that are generated from the models' own fields."""

from __future__ import annotations

import contextlib
import tempfile
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from areal_api.areal_config.tree import set_in
from areal_api.errors import ConfigError
from areal_api.experiment import ExperimentSpec
from areal_api.keys import fields, section_of
from areal_api.load import load_experiment, parse_experiment
from areal_api.render import config_yaml, experiment_yaml
from hack.testbed.experiment_case import Case

KEYS = [(key, field.annotation) for key, field, _ in fields(ExperimentSpec) if section_of(field.annotation) is None]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "001",
        "1e5",
        "true",
        "null",
        "~",
        "",
        " x ",
        "${x}",
        "\\${x}",
        "a: b",
        "#",
        "-",
        "[",
        "yes",
        "2026-01-01",
        "ü\n",
        "'",
    ]
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type; its bounds may refuse them."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return st.one_of([st.none() if option is type(None) else values(option) for option in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is list:
        return st.lists(values(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(TEXTS, values(arguments[1]), max_size=2)
    kinds = {bool: st.booleans(), int: st.integers(-1, 9), str: TEXTS, Any: PLAIN}
    return kinds.get(annotation, st.floats(0, 2, allow_nan=False))


CHANGES = st.sampled_from(KEYS).flatmap(lambda key: st.tuples(st.just(key[0]), values(key[1])))


@settings(max_examples=75, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(CHANGES, max_size=4))
def test_every_valid_experiment_is_the_same_after_writing_and_reading(changes: list[tuple[str, Any]]) -> None:
    data = Case("").experiment()
    for key, value in changes:
        set_in(data["spec"], key, value)
    try:
        experiment = parse_experiment(data, source="generated")
    except ConfigError:
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "experiment.yaml"
        path.write_text(experiment_yaml(experiment), encoding="utf-8")
        assert load_experiment(path) == experiment
    assert yaml.safe_load(config_yaml(experiment.spec.config))["trial_name"] is not None


OVERRIDES = st.builds(
    lambda key, text, plus: f"{'+' * plus}{key}={text}",
    st.sampled_from([key for key, _ in KEYS]) | TEXTS | st.sampled_from(["servers.args.x", "config.sglang.y"]),
    TEXTS | st.integers().map(str) | st.floats().map(repr) | PLAIN.map(lambda value: yaml.safe_dump(value)),
    st.booleans(),
)


@settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(OVERRIDES, max_size=3))
def test_any_overrides_give_an_experiment_or_a_configuration_error(overrides: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "experiment.yaml"
        path.write_text(yaml.safe_dump(Case("").experiment()))
        with contextlib.suppress(ConfigError):
            load_experiment(path, overrides)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([key for key, _ in KEYS]), PLAIN, max_size=4))
def test_any_object_is_an_experiment_or_a_configuration_error(changes: dict[str, Any]) -> None:
    data = Case("").experiment()
    for key, value in changes.items():
        set_in(data["spec"], key, value)
    with contextlib.suppress(ConfigError):
        parse_experiment(data, source="generated")
