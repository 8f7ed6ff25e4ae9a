"""What is set for the operator as a whole, by environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from areal_api.logs import wants_json

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
    retry_s: float = 10.0  # from a failure to the next attempt; it doubles with each

    @classmethod
    def of(cls, env: Mapping[str, str]) -> Settings:
        """Settings from the environment; raises ``ValueError`` that names the variable."""
        images = {key: env[name] for key, name in IMAGE_VARIABLES.items() if env.get(name)}
        return cls(
            namespace=env.get("AREAL_OPERATOR_NAMESPACE") or "default",
            identity=env.get("AREAL_OPERATOR_IDENTITY") or env.get("HOSTNAME") or "operator",
            watched=tuple(name for name in env.get("AREAL_WATCH_NAMESPACES", "").replace(",", " ").split() if name),
            images=images,
            json_logs=wants_json(env),
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
