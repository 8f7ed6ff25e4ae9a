"""Answers of the scripted server: tokens, log-probs and durations as a function of the request alone.

The next token is a hash of everything before it, so an answer does not depend on arrival order, on the server, or on
interruptions: a request that continues from the tokens generated so far (n = 1) ends with the same tokens as one that
was never interrupted.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

_MASK = (1 << 64) - 1
_ODD = 0x9E3779B97F4A7C15
# The requested length does not influence the tokens, because a continuation requests fewer.
_NOT_HASHED = frozenset({"n", "max_new_tokens", "min_new_tokens"})

Answer = Callable[[list[int], dict[str, Any], int], list[int]]
FaultKind = Literal["die", "hang", "cut", "half", "status", "delay", "restart", "abort", "hold"]


@dataclass(frozen=True)
class Fault:
    """A fault and the requests that it affects.

    die: the server disappears, as after kill -9. hang: never answers. cut: closes the connection without an answer.
    half: sends half of the answer, then closes. status: answers `status` with `body`. delay: answers after `delay_s`.
    restart: cuts all connections, refuses new ones for `delay_s`, then serves its first version again.
    abort: ends the answer half-way, as SGLang does for an aborted request.
    hold: answers after `release` is called.
    """

    kind: FaultKind
    path: str = "/generate"
    skip: int = 0  # matching requests to let pass first
    times: int = 1  # matching requests to fault; 0 for all further ones
    status: int = 500
    body: str = '{"error": {"message": "scripted fault"}}'
    delay_s: float = 0.0


@dataclass(frozen=True)
class Script:
    """Behaviour of a scripted server; with zero times it answers at once."""

    vocab_size: int = 512
    context_length: int = 4096
    eos_token_id: int = 1
    first_token_id: int = 2  # smallest token ID in answers, except the stop token
    stop_probability: float = 0.05  # probability of the stop token; 0 for answers of max_new_tokens
    logprob: float | None = None  # of every token; None for -ln(vocab_size) ± 0.01
    latency_s: float = 0.0  # before the first token
    token_s: float = 0.0  # per token
    tail_sigma: float = 0.0  # σ of a log-normal factor on durations, drawn from the request
    max_running: int | None = None  # samples decoded concurrently; the others wait in a queue
    cache_tokens: int = 65536  # that its KV cache would hold
    load_s: float = 0.0  # duration of a weight update
    health_s: float = 0.0  # duration of /health (1.0 for SGLang)
    weight_version: str = "default"
    api_key: str | None = None
    answer: str | None = None  # module:function(input_ids, sampling_params, index) -> token ids, with the stop token
    faults: tuple[Fault, ...] = field(default=())
    downloads_to: str | None = None  # folder for versions that it downloads, without a shared run directory
    prefix_cache: bool = False  # report the tokens of a prompt that SGLang's cache would find
    experts: tuple[int, int, int] | None = None  # layers, experts of a token, experts of a layer: reported on request
    more_routes: tuple[str, ...] = ()  # further routes that do nothing and report success

    @classmethod
    def from_json(cls, text: str) -> Script:
        """A script from a JSON object; raises ValueError naming unknown keys."""
        values = json.loads(text)
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"script: unknown keys {unknown}; known are {sorted(known)}")
        faults = tuple(Fault(**fault) for fault in values.pop("faults", ()))
        if values.get("experts") is not None:
            values["experts"] = tuple(values["experts"])
        return cls(**values, faults=faults)


@dataclass(frozen=True)
class Sample:
    """A complete answer, as without interruption."""

    tokens: list[int]
    logprobs: list[float]
    finish_reason: dict[str, Any]
    duration_s: float


def _mix(x: int) -> int:
    """splitmix64's finaliser: a 64-bit hash of a 64-bit number."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


@functools.lru_cache(maxsize=1024)
def _salt(hashed_params: str, index: int) -> int:
    return _mix(zlib.crc32(hashed_params.encode()) * _ODD + index)


@functools.lru_cache(maxsize=64)
def _load(path: str) -> Answer:
    module, _, name = path.partition(":")
    answer: Answer = getattr(importlib.import_module(module), name)
    return answer


def stop_ids(script: Script, params: dict[str, Any]) -> set[int]:
    stops = set(params.get("stop_token_ids") or ())
    return stops if params.get("ignore_eos") else stops | {script.eos_token_id}


@functools.lru_cache(maxsize=4096)
def _fold(input_ids: tuple[int, ...]) -> int:
    """The prompt as one number, cached for the samples of a prompt and for repeated prompts."""
    state = 0
    for token in input_ids:
        state = (state * _ODD + token + 1) & _MASK
    return state


def _hashed_tokens(script: Script, input_ids: Sequence[int], params: dict[str, Any], index: int) -> list[int]:
    state = _fold(tuple(input_ids))
    salt = _salt(repr(sorted((k, v) for k, v in params.items() if k not in _NOT_HASHED)), index)
    stops = stop_ids(script, params)
    stop_below = int(script.stop_probability * 2**32) if stops else 0
    stop = min(stops, default=-1)
    width, low = script.vocab_size - script.first_token_id, script.first_token_id
    limit, at_least = params.get("max_new_tokens", 128), params.get("min_new_tokens", 0)
    tokens: list[int] = []
    while len(tokens) < limit:
        drawn = _mix(state ^ salt)
        token = low + (drawn >> 32) % width
        if drawn & 0xFFFFFFFF < stop_below and len(tokens) >= at_least:
            token = stop
        tokens.append(token)
        if token in stops and len(tokens) > at_least:
            break
        state = (state * _ODD + token + 1) & _MASK
    return tokens


def _logprobs(script: Script, tokens: list[int], start: int) -> list[float]:
    if script.logprob is not None:
        return [script.logprob] * len(tokens)
    mean = -math.log(script.vocab_size)
    # A cheap hash of token and position: varies, but is equal for the same token at the same position.
    return [mean + ((token * 40503 + position * 30011) % 65536 / 32768 - 1.0) * 0.01
            for position, token in enumerate(tokens, start)]  # fmt: skip


def routed_experts(shape: tuple[int, int, int], tokens: list[int], start: int) -> bytes:
    """The experts of the tokens from ``start`` on as SGLang encodes them; a function of token, position and layer."""
    layers, top_k, experts = shape
    chosen = [
        (_mix(token * _ODD + position * 31 + layer) + k) % experts
        for position, token in enumerate(tokens)
        if position >= start
        for layer in range(layers)
        for k in range(top_k)
    ]
    return struct.pack(f"<{len(chosen)}i", *chosen)


def sample(script: Script, input_ids: list[int], params: dict[str, Any], index: int) -> Sample:
    """The answer `index` of n to a request; a pure function."""
    limit = params.get("max_new_tokens", 128)
    if script.answer is None:
        tokens = _hashed_tokens(script, input_ids, params, index)
    else:
        tokens = _load(script.answer)(input_ids, params, index)[:limit]
    stops = stop_ids(script, params)
    if tokens and tokens[-1] in stops:
        reason: dict[str, Any] = {"type": "stop", "matched": tokens[-1]}
    else:
        reason = {"type": "length", "length": limit}
    duration = script.latency_s + script.token_s * len(tokens)
    if script.tail_sigma and duration:
        seed = _mix(sum(input_ids) * _ODD + index + 1)
        uniform, angle = (seed >> 32) / 2**32, (seed & 0xFFFFFFFF) / 2**32
        normal = math.sqrt(-2.0 * math.log(1.0 - uniform)) * math.cos(2.0 * math.pi * angle)
        duration *= math.exp(script.tail_sigma * normal)
    return Sample(tokens, _logprobs(script, tokens, len(input_ids)), reason, duration)
