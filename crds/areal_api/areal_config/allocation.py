"""Parses AReaL's ``allocation_mode`` and ``backend`` strings into numbers of servers and ranks."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from areal_api.areal_config.tree import Notes
from areal_api.errors import ConfigError

_PART = re.compile(r"^(?:(?P<backend>[a-z_]+)(?:[\[(](?P<name>\w+)[\])])?[.:])?(?P<sizes>(?:[a-z]\d+)+)$")
_HYBRID = re.compile(r"^(?P<backend>[a-z_]+)(?:\[\w+\])?:\(attn:(?P<sizes>(?:[a-z]\d+)+)[|+]ffn:(?:[a-z]\d+)+\)$")
_REPLACED = {"servers": ("vllm",), "trainer": ("megatron", "archon")}  # backends that ours take the place of
_PARALLELISM = {"p": "pipeline", "t": "tensor", "c": "context", "s": "sequence", "e": "expert"}

Role = Literal["servers", "trainer"]


@dataclass(frozen=True)
class Sizes:
    """``data`` replicas with ``tensor`` × ``context`` GPUs each; ``expert`` GPUs divide the experts of a layer."""

    data: int
    tensor: int
    context: int = 1
    expert: int = 1


def parse_part(text: str, *, role: Role, key: str, notes: Notes | None = None) -> Sizes:
    """Parse ``sglang:d4p1t2`` (servers) or ``fsdp:d8`` (trainer). Raises ``ConfigError`` for unsupported sizes."""
    attention = _HYBRID.match(text.strip())
    match = _PART.match(f"{attention['backend']}:{attention['sizes']}" if attention else text.strip())
    if not match:
        example = "sglang:d4t1" if role == "servers" else "fsdp:d4"
        raise ConfigError(f"{key}: {text!r} is not a backend with its sizes; write for example {example}")
    wanted = "sglang" if role == "servers" else "fsdp"
    backend = match["backend"]
    replaced = backend in _REPLACED[role]
    if replaced and notes is not None:
        notes.add(key, f"{backend} becomes {wanted}, on as many GPUs")
    if (backend or "fsdp") != wanted and not replaced:
        raise ConfigError(
            f"{key}: backend {backend or 'missing'} in {text!r} is not supported, the {role} run {wanted}; "
            f"write {wanted}:{match['sizes']}"
        )
    sizes = {letter: int(count) for letter, count in re.findall(r"([a-z])(\d+)", match["sizes"])}
    unknown = sorted(set(sizes) - {"d", *_PARALLELISM})
    if unknown or 0 in sizes.values():
        raise ConfigError(
            f"{key}: sizes {match['sizes']!r} are not letters d, p, t with counts of at least 1; write for example d4t1"
        )
    if role == "trainer":
        return _trainer_sizes(sizes, text, key=key, notes=notes, backend=backend, of_experts=attention is not None)
    if role == "servers" and replaced and sizes.get("p", 1) > 1:
        sizes["t"] = sizes.get("t", 1) * sizes.pop("p")
        if notes is not None:
            notes.add(key, "no pipeline parallelism in the servers: tensor parallelism splits the model instead")
    for letter, count in sizes.items():
        if count > 1 and letter not in ("d", "t"):
            raise ConfigError(
                f"{key}: {letter}{count} in {text!r} requests {_PARALLELISM[letter]} parallelism in the servers, "
                f"which is not supported; use {letter}1 and more d or t"
            )
    return Sizes(data=sizes.get("d", 1), tensor=sizes.get("t", 1))


def _trainer_sizes(
    sizes: dict[str, int], text: str, *, key: str, notes: Notes | None, backend: str | None, of_experts: bool
) -> Sizes:
    """Ranks of the trainer. In files of other trainers data-parallel ranks take the place of what it cannot do."""
    if backend == "fsdp" and sizes.get("p", 1) > 1:
        raise ConfigError(
            f"{key}: p{sizes['p']} in {text!r} requests pipeline parallelism, which the trainer does not have: FSDP "
            f"shards the layers over the ranks instead; write d{sizes.get('d', 1) * sizes['p']} and leave p out"
        )
    expert = max((int(count) for count in re.findall(r"e(\d+)", text)), default=1)
    of_experts = of_experts or (expert > 1 and backend != "fsdp")
    instead = "pt" if of_experts else "p"  # layers and experts are not both divided
    split = [letter for letter in instead if sizes.get(letter, 1) > 1]
    if notes is not None and split:
        kinds = ", ".join(_PARALLELISM[letter] for letter in split)
        notes.add(key, f"no {kinds} parallelism in the trainer: FSDP shards the model over all ranks instead")
    data = math.prod(sizes.get(letter, 1) for letter in f"d{instead}")
    tensor, context = 1 if of_experts else sizes.get("t", 1), sizes.get("c", 1)
    if data * context % expert:
        raise ConfigError(
            f"{key}: e{expert} in {text!r} does not divide the {data * context} ranks of the trainer; choose a divisor"
        )
    return Sizes(data, tensor=tensor, context=context, expert=expert)


def parse_allocation_mode(text: str, notes: Notes | None = None) -> tuple[Sizes, Sizes]:
    """Parse ``sglang.d4p1t1+d4p1t1`` or ``sglang:d4t2+fsdp:d8`` into the sizes of servers and trainer."""
    key = "allocation_mode"
    parts = re.split(r"[+|](?![^()]*\))", text)  # not within (attn:…|ffn:…)
    if len(parts) == 2 and f"{parts[0]}|" in text and notes is not None:
        notes.add(key, "servers and trainer use separate GPUs instead of sharing them")
    if len(parts) == 1 and parts[0].split(":")[0].split(".")[0] in ("sglang", "vllm"):
        raise ConfigError(f"{key}: {text!r} has servers and no trainer, so this file does not train; add +fsdp:d4")
    if len(parts) == 1 and re.fullmatch(r"(?:[a-z]\d+)+", text):
        raise ConfigError(
            f"{key}: {text!r} has a trainer and no servers, so this file samples nothing; put sglang:d4+ first"
        )
    if len(parts) == 2 and "[rollout]" in parts[1]:
        parts.reverse()
    if len(parts) != 2:
        raise ConfigError(f"{key}: {text!r} is not of the form servers+trainer; write for example sglang:d4t1+fsdp:d4")
    servers = parse_part(parts[0], role="servers", key=key, notes=notes)
    return servers, parse_part(parts[1], role="trainer", key=key, notes=notes)


def spread(ranks: int, gpus_per_node: int) -> tuple[int, int]:
    """Spread ``ranks`` evenly over as few nodes as possible; returns (nodes, ranks per node)."""
    nodes = -(-ranks // gpus_per_node)
    while ranks % nodes:
        nodes += 1
    return nodes, ranks // nodes
