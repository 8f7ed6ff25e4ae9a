"""Which parameters of a request can be honoured: those that leave the distribution as it is trained."""

from __future__ import annotations

from typing import Any

from areal_api.generation import WHOLE_VOCABULARY, GenerationHyperparameters
from areal_trainer.gateway.errors import GatewayError
from areal_trainer.gateway.messages import invalid

MAX_STOPS = 16
MAX_STOP_LENGTH = 256


def check_sampling(body: dict[str, Any], gconfig: GenerationHyperparameters, *, known: frozenset[str]) -> None:
    """Raise ``GatewayError`` for a parameter outside ``known`` that would not be honoured.

    A parameter whose value is null, or what ``gconfig`` and the protocol's defaults say anyway, is accepted.
    """
    honoured: dict[str, tuple[Any, ...]] = {
        "temperature": (gconfig.temperature,),
        "top_p": (gconfig.top_p,),
        "top_k": (gconfig.top_k, -1) if gconfig.top_k >= WHOLE_VOCABULARY else (gconfig.top_k,),
        "min_p": (0,),
        "frequency_penalty": (gconfig.frequency_penalty,),
        "presence_penalty": (0,),
        "repetition_penalty": (1,),
        "logit_bias": ({},),
        "min_tokens": (0,),
        "modalities": (["text"],),
    }
    for name, value in body.items():
        if value is None or name in known:
            continue
        if name not in honoured:
            raise GatewayError(
                400,
                f"{name:.80} is not supported; leave it out, or set rollout.agent.unsupported_sampling=ignore",
                field=name[:80],
                code="unsupported_parameter",
            )
        if value not in honoured[name]:
            raise GatewayError(
                400,
                f"{name} is {value!r:.80}, which would not sample from the distribution that is trained; leave it out, "
                f"use {honoured[name][0]!r}, or set rollout.agent.unsupported_sampling=ignore",
                field=name,
                code="unsupported_value",
            )


def integer(body: dict[str, Any], name: str, *, low: int, high: int) -> int | None:
    """The field ``name``, an integer from ``low`` to ``high``; None if it is not set."""
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or not low <= value <= high:
        raise invalid(name, f"is {value!r:.80}; use an integer from {low} to {high}")
    return value


def boolean(body: dict[str, Any], name: str) -> bool:
    """The field ``name``; False if it is not set."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise invalid(name, f"is {value!r:.80}; use true or false")
    return bool(value)


def stop_texts(body: dict[str, Any], name: str) -> list[str]:
    """The field ``name``: stop texts, as a list or a single one."""
    value = body.get(name)
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise invalid(name, f"is {value!r:.80}; use text or a list of texts that are not empty")
    if len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP_LENGTH for stop in stops):
        raise invalid(name, f"has {len(stops)} texts; at most {MAX_STOPS} of {MAX_STOP_LENGTH} characters are allowed")
    return stops
