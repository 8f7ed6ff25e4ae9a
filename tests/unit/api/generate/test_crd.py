"""Generated files are up to date, and Kubernetes accepts the resource definition."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from areal_api.bounds import MAX_FREE_FORM_DEPTH
from areal_api.config import GRPOConfig
from areal_api.generate.cel_rules import RULES
from areal_api.generate.check import check_or_write
from areal_api.generate.crd import FILE, crd, crd_yaml
from areal_api.generate.docs import DOCUMENT, configuration_markdown, describe_keys, key_docs
from areal_api.keys import fields
from support.experiment_cases import CASES


def root() -> dict[str, Any]:
    schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert isinstance(schema, dict)
    return schema


def schemas(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for key, below in node.get("properties", {}).items():
        yield from schemas(below, f"{path}.{key}")
    for key in ("items", "additionalProperties"):
        if key in node:
            yield from schemas(node[key], f"{path}[]")


@pytest.mark.parametrize(("path", "text"), [(FILE, crd_yaml()), (DOCUMENT, configuration_markdown())])
def test_the_committed_file_is_up_to_date(path: Any, text: str) -> None:
    assert path.read_text() == text


def test_a_file_that_drifted_is_told_apart(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.yaml"
    assert check_or_write(["--check"], path=path, text="a", module="m") == 1
    assert check_or_write(["--write"], path=path, text="a", module="m") == 0
    assert check_or_write(["--check"], path=path, text="a", module="m") == 0
    assert check_or_write(["--check"], path=path, text="b", module="m") == 1
    assert check_or_write([], path=path, text="b", module="m") == 2
    assert "x.yaml is out of date; run: python -m m --write" in capsys.readouterr().err


def test_the_definition_is_plain_yaml() -> None:
    assert yaml.safe_load(crd_yaml()) == crd()


FIXED = (".apiVersion", ".kind")  # known to the API server
# Keys are limited by the operator.
FREE_FORM = re.compile(r"\.spec\.(servers\.args|servers\.pools\[\]\.args|config\.workflow\.kwargs)")
QUANTITY = re.compile(r"\.(limits|requests)$")


def unbounded(path: str, node: dict[str, Any]) -> list[str]:
    """What has no limit in one node of the schema."""
    missing: list[str] = []
    if node.get("type") == "string" and "enum" not in node and path not in FIXED:
        missing += [key for key in ("maxLength",) if key not in node]
    if node.get("type") == "array":
        missing += [key for key in ("maxItems",) if key not in node]
    if node.get("type") == "integer":
        missing += [key for key in ("minimum", "maximum") if key not in node]
    if "additionalProperties" in node:
        missing += [key for key in ("maxProperties",) if key not in node]
        rules = str(node.get("x-kubernetes-validations"))
        if "size(key) <= " not in rules and not FREE_FORM.match(path) and not QUANTITY.search(path):
            missing.append("length of keys")
    if node.get("x-kubernetes-preserve-unknown-fields"):
        missing += [key for key in ("maxLength", "maxItems", "maxProperties") if key not in node]
        if node.get("maxItems") != 0 and not {"items", "additionalProperties"} <= set(node):
            missing.append("depth")
    if node.get("type") == "object" and not {"properties", "additionalProperties"} & set(node) and path != ".metadata":
        missing.append("keys")
    return missing


def test_everything_in_an_experiment_is_bounded() -> None:
    assert {path: found for path, node in schemas(root()) if (found := unbounded(path, node))} == {}


@pytest.mark.parametrize(
    "node",
    [
        {"type": "string"},
        {"type": "array", "items": {"type": "string", "maxLength": 1}},
        {"type": "integer"},
        {"type": "object", "maxProperties": 1, "additionalProperties": {"type": "string", "maxLength": 1}},
        {"type": "object"},
        {"x-kubernetes-preserve-unknown-fields": True},
        {"x-kubernetes-preserve-unknown-fields": True, "maxLength": 1, "maxItems": 1, "maxProperties": 1},
    ],
)
def test_an_unbounded_node_is_found(node: dict[str, Any]) -> None:
    assert unbounded(".spec.x", node)


def test_every_schema_is_structural() -> None:
    for path, schema in schemas(root()):
        assert "type" in schema or schema["x-kubernetes-preserve-unknown-fields"], path
        assert not {"$ref", "anyOf", "const", "title"} & set(schema), path
        assert not ("properties" in schema and "additionalProperties" in schema), path
        assert schema.get("default", "") is not None, path
        for bound in ("exclusiveMinimum", "exclusiveMaximum"):
            assert schema.get(bound, True) is True, path


def test_defaults_of_the_models_are_those_of_the_definition() -> None:
    config = root()["properties"]["spec"]["properties"]["config"]["properties"]
    assert config["actor"]["default"] == {}
    assert config["actor"]["properties"]["eps_clip"] == {
        "minimum": 0,
        "type": "number",
        "description": "PPO clip range below 1 (and above, without eps_clip_higher).",
        "default": 0.2,
    }
    assert config["actor"]["properties"]["behav_imp_weight_cap"]["nullable"] is True
    assert "default" not in config["valid_dataset"]
    assert config["valid_dataset"]["nullable"] is True
    assert "required" not in root()["properties"]["spec"]["properties"]["config"]


def test_everything_in_the_spec_has_a_bound() -> None:
    for path, schema in schemas(root()["properties"]["spec"]):
        kind = schema.get("type")
        if kind is None:  # free-form: nothing may be nested below the last level
            assert {"maxLength", "maxItems", "maxProperties"} <= set(schema), path
            assert ("items" in schema) == ("additionalProperties" in schema) == (schema["maxItems"] > 0), path
            assert ("items" in schema) == (schema["maxProperties"] > 0), path
        elif kind == "object":
            assert "properties" in schema or "maxProperties" in schema, path
        elif kind == "array":
            assert "maxItems" in schema, path
        elif kind == "string":
            assert "enum" in schema or "maxLength" in schema, path
        elif kind == "integer":
            assert {"minimum", "maximum"} <= set(schema), path


def test_free_form_mappings_have_four_levels() -> None:
    spec = root()["properties"]["spec"]["properties"]
    for schema in (
        spec["servers"]["properties"]["args"],
        spec["config"]["properties"]["workflow"]["properties"]["kwargs"],
    ):
        depth = 0
        while "additionalProperties" in schema:
            schema, depth = schema["additionalProperties"], depth + 1
        assert depth == MAX_FREE_FORM_DEPTH + 1


def test_conditions_are_a_map_by_type() -> None:
    conditions = root()["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]


def test_columns_and_subresources_point_at_fields() -> None:
    version = crd()["spec"]["versions"][0]
    paths = [column["jsonPath"] for column in version["additionalPrinterColumns"]]
    paths += list(version["subresources"]["scale"].values())
    known = {path for path, _ in schemas(root())} | {".metadata.creationTimestamp"}
    assert set(paths) <= known


def test_rules_are_at_objects_without_a_default() -> None:
    by_path = {path.removeprefix("."): schema for path, schema in schemas(root())}
    assert [rule.message for rule in RULES if "default" in by_path.get(rule.at, {})] == []


def test_rules_stand_at_objects_and_are_tried_by_a_case() -> None:
    places = {path.removeprefix(".") for path, schema in schemas(root()) if "properties" in schema}
    assert {rule.at for rule in RULES} <= places | {""}
    untried = [rule for rule in RULES if not any(case.rule and case.rule in rule.message for case in CASES)]
    # A case creates an experiment; rules about changes have tests with an experiment that has started.
    assert [rule.message for rule in untried if "oldSelf" not in rule.expression] == []


def test_every_key_is_in_the_help_and_in_the_reference() -> None:
    text, document = describe_keys(), configuration_markdown()
    for key, _, _ in fields(GRPOConfig):
        assert f"\n  {key}" in text
        assert f"| `{key}` |" in document
    assert "\n  servers.maxReplicas  [whole number or null, default null, ≥ 1, ≤ 1024]" in text


def test_a_key_shows_default_unit_and_bounds() -> None:
    doc = next(doc for doc in key_docs() if doc.key == "gconfig.max_new_tokens")
    assert (doc.type, doc.default, doc.unit, doc.bounds) == ("whole number", "16384", "tokens", "≥ 1")
