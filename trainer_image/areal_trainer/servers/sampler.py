"""Completions from the fleet: a prompt's samples in one request, carried on elsewhere when a server gives up."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

from areal_trainer.servers.client import Client, ServerBusyError, ServerError, ServerLostError
from areal_trainer.servers.fleet import Fleet, Server
from areal_trainer.servers.generation import (
    ANSWERS,
    ONE_ANSWER,
    Draft,
    ModelRequest,
    ModelResponse,
    WrongVersionError,
    check_token_ids,
    sampling_params,
)

RETRY_WAIT_S = 0.1  # before another attempt after a refusal that may pass


class GenerationError(Exception):
    """A request failed on as many servers as ``rollout.request_retries`` allows."""


class Sampler:
    """Samples completions from whichever server is current and has the least work."""

    def __init__(
        self, fleet: Fleet, client: Client, *, request_timeout_s: float, retries: int, vocab_size: int | None
    ) -> None:
        self._fleet = fleet
        self._client = client
        self._timeout_s = request_timeout_s
        self._retries = retries
        self._vocab_size = vocab_size
        self._numbers = itertools.count()

    async def sample(self, request: ModelRequest, n: int) -> list[ModelResponse]:
        """``n`` completions of one prompt, from one server as one request; what is interrupted goes on one by one.

        Raises ``ValueError`` for token ids outside the vocabulary and prompts without room to answer,
        ``ServerRefusedError`` for what a server refuses, ``GenerationError`` after too many attempts and
        ``NoServerError`` without any server.
        """
        check_token_ids(request.input_ids, self._vocab_size)
        started = time.perf_counter()
        drafts = await self._ask(request, [], n)
        unfinished = [draft for draft in drafts if draft.stop_reason is None]
        if unfinished:
            await asyncio.gather(*(self._carry_on(request, draft) for draft in unfinished))
        latency_s = time.perf_counter() - started
        return [draft.response(request.input_ids, latency_s) for draft in drafts]

    async def _carry_on(self, request: ModelRequest, draft: Draft) -> None:
        """Complete an interrupted draft from the tokens that it has."""
        without_progress = 0
        while draft.stop_reason is None:
            [part] = await self._ask(request, draft.tokens, 1)
            draft.append(part)
            without_progress = 0 if part.tokens else without_progress + 1
            if draft.stop_reason is None and without_progress >= self._retries:
                raise GenerationError(
                    f"{_name(request)} was aborted {without_progress} times in a row before it got a token; "
                    "something aborts the servers' requests"
                )
            if without_progress and draft.stop_reason is None:
                await asyncio.sleep(RETRY_WAIT_S)

    async def _ask(self, request: ModelRequest, made: list[int], n: int) -> list[Draft]:
        """``n`` continuations of the prompt and ``made``, in one answer; tries another server where that may help."""
        params = sampling_params(request.gconfig, n=n, made=len(made), prompt_len=len(request.input_ids))
        body: dict[str, Any] = {
            "input_ids": request.input_ids + made if made else request.input_ids,
            "sampling_params": params,
            "return_logprob": True,
        }
        tried: set[Server] = set()
        last: Exception | None = None
        for attempt in range(self._retries):
            server = await self._fleet.acquire(tried)
            if request.rid is not None:
                body["rid"] = f"{request.rid}-{next(self._numbers)}"  # one that is in use is refused
            try:
                return await self._ask_server(server, body, n)
            except ServerLostError as error:
                self._fleet.lost(server, error)
                last = error
            except WrongVersionError as error:
                self._fleet.wrong(server, error)
                last = error
            except ServerBusyError as error:
                last = error
                await asyncio.sleep(RETRY_WAIT_S * 2**attempt)
            tried.add(server)
        raise GenerationError(
            f"{_name(request)} failed {self._retries} times (rollout.request_retries), last: {last}"
        ) from last

    async def _ask_server(self, server: Server, body: dict[str, Any], n: int) -> list[Draft]:
        held, ask, url = server.version, self._client.ask, server.generate_url
        limits: Any = {"timeout_s": self._timeout_s, "deadlines": server.deadlines}
        server.load += n
        try:
            answers = (
                [await ask(url, body, ONE_ANSWER, **limits)] if n == 1 else await ask(url, body, ANSWERS, **limits)
            )
        finally:
            server.load -= n
        if len(answers) != n:
            raise ServerError(f"{server.address} answered with {len(answers)} samples for {n}")
        # Weights that were loaded meanwhile are as good as those that were there when it was sent.
        limit, newest = body["sampling_params"]["max_new_tokens"], max(held, self._fleet.target.version)
        return [Draft.of_answer(answer, oldest=held, newest=newest, limit=limit) for answer in answers]


def _name(request: ModelRequest) -> str:
    return f"request {request.rid}" if request.rid else f"a request with a prompt of {len(request.input_ids)} tokens"
