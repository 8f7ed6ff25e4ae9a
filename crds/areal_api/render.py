"""Writes models as files: the resolved configuration, and a readable experiment.yaml."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from areal_api.actor import NormConfig
from areal_api.config import GRPOConfig
from areal_api.experiment import GRPOExperiment
from areal_api.section import Section

WIDTH = 120


def config_yaml(config: GRPOConfig) -> str:
    """The resolved configuration as a file, with every key and without interpolation."""
    data = _without_interpolation(config.model_dump(mode="json"))
    return "".join(_section_yaml(json.dumps({key: value})) for key, value in data.items())


@lru_cache(maxsize=128)
def _section_yaml(section: str) -> str:
    """The YAML of one top-level key, given as JSON. Most experiments share most sections, and writing one is slow."""
    return yaml.dump(json.loads(section), Dumper=_FastDumper, sort_keys=False, allow_unicode=True)


def experiment_yaml(experiment: GRPOExperiment) -> str:
    """The experiment as a file that loads to an equal object: values that differ from the defaults, with comments."""
    metadata = experiment.metadata.model_dump(mode="json", exclude_defaults=True, by_alias=True)
    lines = [f"apiVersion: {experiment.api_version}", f"kind: {experiment.kind}"]
    lines += [f"metadata: {_flow(metadata)}", "spec:"]
    hidden = {"experiment_name"} if experiment.spec.config.experiment_name == experiment.metadata.name else set()
    lines += _section(experiment.spec, "  ", hidden=hidden)
    return "\n".join(lines) + "\n"


def described(field: FieldInfo) -> str:
    """A field's description with its unit."""
    extra = field.json_schema_extra
    unit = extra.get("unit") if isinstance(extra, dict) else None
    return f"{field.description} ({unit})" if unit else str(field.description)


def _section(section: Section, pad: str, *, hidden: set[str]) -> Iterator[str]:
    for key, name in type(section).keys().items():
        field, value = type(section).model_fields[name], getattr(section, name)
        if key in hidden or (not field.is_required() and value == field.get_default(call_default_factory=True)):
            continue
        if isinstance(value, Section):
            below = list(_section(value, f"{pad}  ", hidden=hidden if isinstance(value, GRPOConfig) else set()))
            if not below and isinstance(value, NormConfig):  # {} would hide its meaning
                below = [f"{pad}  mean_level: {value.mean_level}", f"{pad}  std_level: {value.std_level}"]
            yield from _commented(f"{pad}{key}:" if below else f"{pad}{key}: {{}}", described(field), pad)
            yield from below
        else:
            plain = _plain(section, name)
            plain = _without_interpolation(plain) if _is_config(section) else plain
            yield from _commented(f"{pad}{key}: {_flow(plain)}", described(field), pad)


def _plain(section: Section, name: str) -> Any:
    value = getattr(section, name)
    if isinstance(value, list) and value and isinstance(value[0], Section):
        return [item.model_dump(mode="json", by_alias=True, exclude_defaults=True) for item in value]
    return section.model_dump(mode="json", include={name})[name]


def _is_config(section: Section) -> bool:
    return type(section).model_config.get("alias_generator") is None


def _commented(line: str, comment: str, pad: str) -> Iterator[str]:
    if len(line) + len(comment) + 4 <= WIDTH:
        yield f"{line}  # {comment}"
    else:
        yield from (f"{pad}# {comment}", line)


class _Dumper(yaml.SafeDumper):
    """Quotes texts such as 1e5, which our loader, unlike PyYAML's, reads as numbers."""


class _FastDumper(yaml.CSafeDumper):
    """``_Dumper`` in C, which escapes characters beyond the basic plane such as emoji."""


for dumper in (_Dumper, _FastDumper):
    dumper.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def _flow(value: Any) -> str:
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, width=1_000_000, sort_keys=False, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _without_interpolation(value: Any) -> Any:
    """``value`` with every ``${`` escaped, because a model contains resolved values."""
    if isinstance(value, str):
        return value.replace("${", "\\${")
    if isinstance(value, dict):
        return {key: _without_interpolation(item) for key, item in value.items()}
    return [_without_interpolation(item) for item in value] if isinstance(value, list) else value
