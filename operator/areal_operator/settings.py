"""What is set for the operator as a whole, by environment variables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from areal_api.logs import wants_json

PEER_FIELDS = {"podSelector", "namespaceSelector", "ipBlock"}  # of a NetworkPolicy
Device = Literal["cuda", "cpu"]
IMAGE_VARIABLES: dict[tuple[str, Device], str] = {
    ("trainer", "cuda"): "AREAL_TRAINER_IMAGE",
    ("trainer", "cpu"): "AREAL_TRAINER_IMAGE_CPU",
    ("server", "cuda"): "AREAL_SERVER_IMAGE",
    ("server", "cpu"): "AREAL_SERVER_IMAGE_CPU",
}


@dataclass(frozen=True)
class Settings:
    """Settings of the operator."""

    namespace: str = "default"  # its own: Lease and key live there
    identity: str = "operator"  # of this process among those that compete for the Lease
    watched: tuple[str, ...] = ()  # namespaces; empty: all
    images: Mapping[tuple[str, Device], str] = field(default_factory=dict)
    progress_url: str | None = None  # under which trainers reach this operator; None: nothing is pushed
    port: int = 8080  # progress, metrics, health
    workers: int = 4
    resync_s: float = 300.0
    waiting_s: float = 15.0  # how often the events of something that waits are read again
    json_logs: bool = False  # of this process and of the pods that it makes
    metrics_from: tuple[Mapping[str, Any], ...] = ()  # who may read the servers' metrics: peers of a NetworkPolicy
    retry_s: float = 10.0  # from a failure to the next attempt; it doubles with each

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Settings from the environment; raises ``ValueError`` that names the variable."""
        images = {key: env[name] for key, name in IMAGE_VARIABLES.items() if env.get(name)}
        return cls(
            namespace=env.get("AREAL_OPERATOR_NAMESPACE") or "default",
            identity=env.get("AREAL_OPERATOR_IDENTITY") or env.get("HOSTNAME") or "operator",
            watched=tuple(name for name in env.get("AREAL_WATCH_NAMESPACES", "").replace(",", " ").split() if name),
            images=images,
            json_logs=wants_json(env),
            metrics_from=_peers(env, "AREAL_METRICS_FROM"),
            progress_url=(env.get("AREAL_OPERATOR_URL") or "").rstrip("/") or None,
            port=_number(env, "AREAL_OPERATOR_PORT", 8080),
            workers=_number(env, "AREAL_OPERATOR_WORKERS", 4),
            resync_s=_number(env, "AREAL_OPERATOR_RESYNC_SECONDS", 300),
            waiting_s=_number(env, "AREAL_OPERATOR_WAITING_SECONDS", 15),
            retry_s=_number(env, "AREAL_OPERATOR_RETRY_SECONDS", 10),
        )

    def image(self, kind: Literal["trainer", "server"], device: Device, asked: str | None) -> str:
        """The image that a spec asks for, or the operator's own; raises ``ValueError`` where there is neither."""
        image = asked or self.images.get((kind, device))
        if image is None:
            section = "servers" if kind == "server" else "trainer"
            raise ValueError(
                f"{section}.image is not set and the operator has none for device {device}; set it, "
                f"or {IMAGE_VARIABLES[kind, device]} of the operator"
            )
        return image


def _number(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{name} is {text!r}; set a whole number of at least 1")
    return int(text)


def _peers(env: Mapping[str, str], name: str) -> tuple[Mapping[str, Any], ...]:
    text = env.get(name) or "[]"
    try:
        peers = json.loads(text)
    except ValueError:
        peers = None
    if not isinstance(peers, list) or not all(_is_peer(peer) for peer in peers):
        raise ValueError(
            f"{name} is {text!r}; set a JSON list of a NetworkPolicy's peers, "
            'as [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]'
        )
    return tuple(peers)


def _is_peer(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and set(value) <= PEER_FIELDS
