"""Overrides of the command line: ``key=value`` and ``+key=value``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from areal_api.errors import ConfigError


@dataclass(frozen=True)
class Override:
    """One override. ``added`` says that it was written with ``+``."""

    key: str
    value: Any
    added: bool
    text: str

    @property
    def source(self) -> str:
        """What error messages call it."""
        return f"override {self.text}"


def parse_override(text: str) -> Override:
    """``+sglang.attention_backend=triton`` → its parts; the value is read as YAML."""
    key, equals, value = text.partition("=")
    added = key.startswith("+")
    key = key.lstrip("+").strip()
    if not equals or not key or key.startswith(("-", "~")):
        raise ConfigError(f"override {text}: is not key=value; write for example actor.path=Qwen/Qwen3-1.7B")
    if not all(key.split(".")):
        raise ConfigError(f"override {text}: the key has an empty part; write for example actor.optimizer.lr=1e-5")
    try:
        container = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]), resolve=False)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"override {text}: the value is not YAML ({_first_line(error)}); quote it") from error
    assert isinstance(container, dict)
    return Override(key=key, value=container["value"], added=added, text=text)


def put(tree: dict[str, Any], key: str, value: Any, *, source: str) -> None:
    """Set the dotted ``key`` in ``tree``; sections on the way are made."""
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


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
