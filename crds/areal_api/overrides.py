"""Command-line overrides, ``key=value`` and ``+key=value``, read by the type of their key."""

from __future__ import annotations

import re
import types
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from areal_api.errors import ConfigError
from areal_api.keys import section_of, unannotated
from areal_api.section import Section
from areal_api.yaml_text import compose, load_yaml

_INTEGER = re.compile(r"[-+]?[0-9][0-9_]{0,30}")
_NUMBER = re.compile(r"[-+]?(?:[0-9][0-9_]{0,30}\.?[0-9]{0,30}|\.[0-9]{1,30})(?:[eE][-+]?[0-9]{1,4})?")
_NULL = ("", "null", "Null", "NULL", "~")


@dataclass(frozen=True)
class Override:
    """One override, unread. ``added`` means that it was written with ``+``."""

    key: str
    written: str
    added: bool
    text: str

    @property
    def source(self) -> str:
        """Its name in error messages."""
        return f"override {self.text if len(self.text) <= 200 else self.text[:199] + '…'}"

    def value(self, annotation: Any) -> Any:
        """The value for a field of this type.

        Text is taken literally (``001`` and ``true`` stay text, nothing is the empty text); quotes around all of it are
        removed, and ``null`` is no value. Numbers are decimal. Lists and sections are YAML, and their items follow
        their own types. ``Any`` is YAML.
        """
        kind, nullable = _without_none(annotation)
        scalar = self._scalar(kind, nullable)
        if scalar is not _NOT_SCALAR:
            return scalar
        try:
            if kind is Any:
                return load_yaml(self.written)
            node = compose(self.written)
            return None if node is None else _typed(node, annotation)
        except (yaml.YAMLError, ValueError) as error:
            reason = getattr(error, "context", None) or str(error).splitlines()[0]
            raise ConfigError(f"{self.source}: the value is not YAML ({reason}); quote it") from error

    def _scalar(self, kind: Any, nullable: bool) -> Any:
        text = self.written
        if kind is str or get_origin(kind) is Literal:
            if text[:1] in ("'", '"') and text[-1:] == text[:1] and len(text) > 1:
                return _unquoted(text)
            return None if text in _NULL[1:] or (text == "" and nullable) else text
        if kind in (bool, int, float):
            return None if text in _NULL else _number(text.strip(), kind)
        return _NOT_SCALAR


def parse_override(text: str) -> Override:
    """``+sglang.attention_backend=triton`` → its parts."""
    key, equals, value = text.partition("=")
    added = key.startswith("+")
    key = key.lstrip("+").strip()
    if not equals or not key or key.startswith(("-", "~")):
        raise ConfigError(f"override {text}: is not key=value; write for example actor.path=Qwen/Qwen3-1.7B")
    if not all(key.split(".")):
        raise ConfigError(f"override {text}: the key has an empty part; write for example actor.optimizer.lr=1e-5")
    return Override(key=key, written=value, added=added, text=text)


def put(tree: dict[str, Any], key: str, value: Any, *, source: str) -> None:
    """Set the dotted ``key`` in ``tree``, creating sections on the way."""
    *above, last = key.split(".")
    node = tree
    for part in above:
        below = node.get(part)
        if below is None:
            below = node[part] = {}
        if not isinstance(below, dict):
            raise ConfigError(f"{source}: {part} is {below!r}, not a section; set {part} as a whole")
        node = below
    node[last] = value


_NOT_SCALAR = object()


def _typed(node: yaml.Node, annotation: Any) -> Any:
    """The value of a YAML node for a field of this type."""
    kind, _ = _without_none(annotation)
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(node, yaml.ScalarNode):
        if not node.style and node.value in _NULL:
            return None
        if node.style or kind is str or origin is Literal:
            return node.value
        if kind in (bool, int, float):
            return _number(node.value, kind)
    elif isinstance(node, yaml.SequenceNode) and origin is list:
        return [_typed(item, arguments[0]) for item in node.value]
    elif isinstance(node, yaml.MappingNode):
        section = section_of(kind)
        if section is not None:
            return {key.value: _typed(item, _annotation(section, key.value)) for key, item in node.value}
        if origin is dict and arguments[1] is not Any:
            return {key.value: _typed(item, arguments[1]) for key, item in node.value}
    return load_yaml(yaml.serialize(node, allow_unicode=True, Dumper=yaml.SafeDumper))


def _annotation(section: type[Section], key: str) -> Any:
    name = section.keys().get(key)
    return Any if name is None else section.model_fields[name].annotation


def _number(text: str, kind: type) -> Any:
    """``text`` as a number or a boolean; as it is where it is neither, for the model to refuse."""
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text


def _unquoted(text: str) -> str:
    try:
        node = compose(text)
    except (yaml.YAMLError, ValueError):
        return text
    return node.value if isinstance(node, yaml.ScalarNode) and node.style in ("'", '"') else text


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """The type without ``None``, and whether it allows ``None``."""
    annotation = unannotated(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        options = [option for option in get_args(annotation) if option is not type(None)]
        return (unannotated(options[0]) if len(options) == 1 else Any), len(options) < len(get_args(annotation))
    return annotation, False
