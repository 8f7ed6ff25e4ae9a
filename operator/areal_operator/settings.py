"""The operator's settings, from environment variables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from areal_api.logs import is_json
from areal_operator.autoscale import PACE_S

PEER_FIELDS = {"podSelector", "namespaceSelector", "ipBlock"}  # of a NetworkPolicyPeer
FABRIC_KEYS = frozenset(("ipcLock", "hostNetwork"))
Device = Literal["cuda", "cpu"]
DEFAULT_SCHEDULER = "default-scheduler"
GANG_APIS = ("kubernetes", "coscheduling", "volcano", "kai")  # of pod groups
GANG_SCHEDULERS = ((DEFAULT_SCHEDULER, "kubernetes"),)  # by default
IMAGE_VARIABLES: dict[tuple[str, Device], str] = {
    ("trainer", "cuda"): "AREAL_TRAINER_IMAGE",
    ("trainer", "cpu"): "AREAL_TRAINER_IMAGE_CPU",
    ("server", "cuda"): "AREAL_SERVER_IMAGE",
    ("server", "cpu"): "AREAL_SERVER_IMAGE_CPU",
}


@dataclass(frozen=True)
class Settings:
    """Settings of the operator."""

    namespace: str = "default"  # its own, which holds the Lease and the root key
    identity: str = "operator"  # of this process as holder of the Lease
    watched: tuple[str, ...] = ()  # namespaces; empty means all
    images: Mapping[tuple[str, Device], str] = field(default_factory=dict)
    progress_url: str | None = None  # address of this operator for trainers; None: no progress is reported
    port: int = 8080  # progress, metrics, health
    workers: int = 4
    resync_s: float = 300.0
    waiting_s: float = 15.0  # how often unwatched objects that experiments wait for are looked at
    status_s: float = 5.0  # least time between two writes of a status, unless a transition requires one
    json_logs: bool = False  # of this process and of the pods that it creates
    metrics_from: tuple[Mapping[str, Any], ...] = ()  # NetworkPolicy peers that may read the servers' metrics
    fabric: frozenset[str] = frozenset()  # keys of an experiment's fabric sections that the cluster allows
    service_accounts: tuple[str, ...] = ()  # that experiments may name; * at the end matches a prefix
    kueue: bool = False  # whether experiments may wait in queues of Kueue
    gang_schedulers: tuple[tuple[str, str], ...] = ()  # names of schedulers, and the APIs of their pod groups
    egress_to: tuple[Mapping[str, Any], ...] | None = None  # peers that experiments' pods may reach; None: everything
    pace_s: float = PACE_S  # least time between two changes of the number of servers by servers.autoscale
    retry_s: float = 10.0  # delay between a failure and the next attempt; it doubles every time

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Settings from the environment; raises ``ValueError`` that names the variable."""
        images = {key: env[name] for key, name in IMAGE_VARIABLES.items() if env.get(name)}
        return cls(
            namespace=env.get("AREAL_OPERATOR_NAMESPACE") or "default",
            identity=env.get("AREAL_OPERATOR_IDENTITY") or env.get("HOSTNAME") or "operator",
            watched=tuple(name for name in env.get("AREAL_WATCH_NAMESPACES", "").replace(",", " ").split() if name),
            images=images,
            json_logs=is_json(env),
            fabric=_fabric(env, "AREAL_FABRIC"),
            service_accounts=tuple(env.get("AREAL_SERVICE_ACCOUNTS", "").replace(",", " ").split()),
            kueue=_flag(env, "AREAL_KUEUE"),
            gang_schedulers=_schedulers(env, "AREAL_GANG_SCHEDULERS"),
            metrics_from=_peers(env, "AREAL_METRICS_FROM") or (),
            egress_to=_peers(env, "AREAL_EGRESS_TO"),
            progress_url=(env.get("AREAL_OPERATOR_URL") or "").rstrip("/") or None,
            port=_number(env, "AREAL_OPERATOR_PORT", 8080),
            workers=_number(env, "AREAL_OPERATOR_WORKERS", 4),
            resync_s=_number(env, "AREAL_OPERATOR_RESYNC_SECONDS", 300),
            waiting_s=_number(env, "AREAL_OPERATOR_WAITING_SECONDS", 15),
            pace_s=_number(env, "AREAL_OPERATOR_AUTOSCALE_SECONDS", int(PACE_S)),
            retry_s=_number(env, "AREAL_OPERATOR_RETRY_SECONDS", 10),
        )

    def image(self, kind: Literal["trainer", "server"], device: Device, requested: str | None) -> str:
        """The image in the spec, else the operator's default; raises ``ValueError`` if there is neither."""
        image = requested or self.images.get((kind, device))
        if image is None:
            section = "servers" if kind == "server" else "trainer"
            raise ValueError(
                f"{section}.image is not set and the operator has none for device {device}; set it, "
                f"or {IMAGE_VARIABLES[kind, device]} of the operator"
            )
        return image


def _fabric(env: Mapping[str, str], name: str) -> frozenset[str]:
    found = frozenset(word for word in env.get(name, "").replace(",", " ").split() if word)
    if unknown := found - FABRIC_KEYS:
        raise ValueError(f"{name} has {min(unknown)!r}; set a list of {', '.join(sorted(FABRIC_KEYS))}")
    return found


def _schedulers(env: Mapping[str, str], name: str) -> tuple[tuple[str, str], ...]:
    text = env.get(name)
    if text is None:
        return GANG_SCHEDULERS
    pairs = [tuple(word.split("=", 1)) for word in text.replace(",", " ").split()]
    for pair in pairs:
        if len(pair) != 2 or not pair[0] or pair[1] not in GANG_APIS:
            raise ValueError(
                f"{name} has {'='.join(pair)!r}; set a list of scheduler=API, with one of {', '.join(GANG_APIS)} as API"
            )
    return tuple((scheduler, api) for scheduler, api in pairs)


def _flag(env: Mapping[str, str], name: str) -> bool:
    text = env.get(name) or "false"
    if text not in ("true", "false"):
        raise ValueError(f"{name} is {text!r}; set true or false")
    return text == "true"


def _number(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{name} is {text!r}; set a whole number of at least 1")
    return int(text)


def _peers(env: Mapping[str, str], name: str) -> tuple[Mapping[str, Any], ...] | None:
    text = env.get(name)
    if not text:
        return None
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
