"""What the servers of a run have answered, as the proxies recorded it, and with which weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from faults.watched import BASE, UPDATE, WatchedRun
from support.faulty_proxy import Exchange


@dataclass(frozen=True)
class Span:
    """Tokens ``start`` … ``end`` − 1 of an answer, made by the weights ``version``."""

    version: str
    start: int
    end: int


@dataclass(frozen=True)
class Answer:
    """One sample."""

    server: int
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    spans: tuple[Span, ...]
    finished: bool  # else it was aborted, and goes on in another request
    weights: dict[str, list[str]]  # copies that the server may have held under each name, the likeliest first


def recorded(run: WatchedRun) -> Iterator[Answer]:
    """Every sample of every answer, server by server."""
    for server, proxy in enumerate(run.proxies):
        yield from _of_server(server, proxy.exchanges)


def _of_server(server: int, exchanges: Iterable[Exchange]) -> Iterator[Answer]:
    weights: dict[str, list[str]] = {"v0": [BASE]}
    # An answer was made with what was loaded until it came, also while it was made.
    for exchange in sorted(exchanges, key=lambda one: one.began if one.path == UPDATE else one.answered):
        if exchange.path == UPDATE:
            name = json.loads(exchange.request)["weight_version"]
            # An update that nobody waited for may have happened, or not.
            before = [] if exchange.status == 200 else weights.get(name, [])
            weights[name] = [str(exchange.seen), *before]
        elif exchange.path == "/generate" and exchange.status == 200:
            yield from _samples(server, exchange, dict(weights))


def _samples(server: int, exchange: Exchange, weights: dict[str, list[str]]) -> Iterator[Answer]:
    prompt_ids = tuple(json.loads(exchange.request)["input_ids"])
    answers = json.loads(exchange.answer)
    for answer in answers if isinstance(answers, list) else [answers]:
        meta = answer["meta_info"]
        made = meta.get("output_token_logprobs") or []
        spans = meta.get("weight_versions") or [{"version": meta["weight_version"], "start": 0, "end": len(made)}]
        yield Answer(
            server,
            prompt_ids,
            tuple(int(entry[1]) for entry in made),
            tuple(float(entry[0]) for entry in made),
            tuple(Span(span["version"], span["start"], span["end"]) for span in spans),
            meta["finish_reason"]["type"] != "abort",
            weights,
        )
