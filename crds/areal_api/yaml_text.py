"""The YAML of configuration files: YAML 1.1 with ``1e-5`` as a number, dates and times as text, no duplicate keys."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

MAX_LENGTH = 2**22  # characters of a document
MAX_DEPTH = 64  # nested sections and lists
MAX_VALUES = 100_000  # with every alias counted as often as it is used

_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)
# Without numbers of base 60: 12:00:00 is a time limit, as kubectl reads it too.
_INT = re.compile(r"[-+]?(?:0b[01_]+|0[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$")
_BASIC_PLANE = re.compile("[\x7f-\uffff]")
_TIMESTAMP, _FLOAT_TAG = "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float"
_INT_TAG = "tag:yaml.org,2002:int"


class Loader(yaml.CSafeLoader):
    """PyYAML's safe loader with these differences."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own attribute)
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_TIMESTAMP, _FLOAT_TAG, _INT_TAG)]
        for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping without duplicate keys."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"found duplicate key {key.value}", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


Loader.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+0123456789."))
Loader.add_implicit_resolver(_INT_TAG, _INT, list("-+0123456789"))


def json_as_yaml(value: Any) -> str:
    """``value`` as JSON that YAML parsers read as the same value, as a body of server-side apply must be.

    JSON escapes characters such as emoji as two surrogates, which YAML refuses; YAML refuses most control characters
    unescaped. An unpaired surrogate becomes U+FFFD.
    """
    return _BASIC_PLANE.sub(_escaped, json.dumps(value, ensure_ascii=False))


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\u{0xFFFD if 0xD800 <= code < 0xE000 else code:04x}"


def load_yaml(text: str) -> Any:
    """The value of a document. Raises ``yaml.YAMLError`` for bad syntax, ``ValueError`` for one above the bounds."""
    loader = Loader(text)
    try:
        node = compose(text)
        value = None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()
    _check_size(value)
    return value


def compose(text: str) -> yaml.Node | None:
    """The node tree of a document, whose scalars are still text. Raises as ``load_yaml``."""
    if len(text) > MAX_LENGTH:
        raise ValueError(f"it has {len(text)} characters, more than {MAX_LENGTH}")
    depth = 0
    # Composing recurses: measure the depth first.
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return yaml.compose(text, Loader=Loader)


def _check_size(value: Any) -> None:
    left = MAX_VALUES

    def walk(item: Any, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise ValueError(f"its aliases make it larger than {MAX_VALUES} values or deeper than {MAX_DEPTH}")
        for below in item.values() if isinstance(item, dict) else item if isinstance(item, list) else ():
            walk(below, depth + 1)

    walk(value, 0)
