"""Completions from the fleet: a prompt's samples in one request, carried on elsewhere when a server gives up."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from areal_trainer.rollout.client import Client, ServerBusyError, ServerError, ServerLostError
from areal_trainer.rollout.generation import (
    ANSWERS,
    ONE_ANSWER,
    Answer,
    Draft,
    ModelRequest,
    ModelResponse,
    WrongVersionError,
    check_token_ids,
    sampling_params,
)
from areal_trainer.rollout.servers import Fleet, Server

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

    async def sample(self, request: ModelRequest, n: int) -> list[ModelResponse]:
        """``n`` completions of one prompt, from one server as one request; what is interrupted goes on one by one.

        Raises ``ValueError`` for token ids outside the vocabulary and prompts without room to answer,
        ``ServerRefusedError`` for what a server refuses, ``GenerationError`` after too many attempts and
        ``NoServerError`` without any server.
        """
        check_token_ids(request.input_ids, self._vocab_size)
        started = time.perf_counter()
        drafts = [Draft() for _ in range(n)]
        await self._ask(request, drafts)
        if any(draft.stop_reason is None for draft in drafts):
            unfinished = [draft for draft in drafts if draft.stop_reason is None]
            await asyncio.gather(*(self._carry_on(request, draft) for draft in unfinished))
        latency_s = time.perf_counter() - started
        return [draft.response(request.input_ids, latency_s) for draft in drafts]

    async def _carry_on(self, request: ModelRequest, draft: Draft) -> None:
        """Complete an interrupted draft from the tokens that it has."""
        without_progress = 0
        while draft.stop_reason is None:
            before = len(draft.tokens)
            await self._ask(request, [draft])
            without_progress = 0 if len(draft.tokens) > before else without_progress + 1
            if draft.stop_reason is None and without_progress >= self._retries:
                raise GenerationError(
                    f"{_name(request)} was aborted {without_progress} times in a row before it got a token; "
                    "something aborts the servers' requests"
                )
            if without_progress and draft.stop_reason is None:
                await asyncio.sleep(RETRY_WAIT_S)

    async def _ask(self, request: ModelRequest, drafts: list[Draft]) -> None:
        """Extend ``drafts``, which hold the same tokens, by one answer; tries another server where that may help."""
        made = drafts[0].tokens
        params = sampling_params(request.gconfig, n=len(drafts), made=len(made), prompt_len=len(request.input_ids))
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
                body["rid"] = f"{request.rid}-{len(made)}-{attempt}"
            try:
                await self._ask_server(server, body, drafts)
                return
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

    async def _ask_server(self, server: Server, body: dict[str, Any], drafts: list[Draft]) -> None:
        held = server.version
        server.load += len(drafts)
        try:
            answers = await self._answers(server, body, single=len(drafts) == 1)
        finally:
            server.load -= len(drafts)
        if len(answers) != len(drafts):
            raise ServerError(f"{server.address} answered with {len(answers)} samples for {len(drafts)}")
        # Weights that were loaded meanwhile are as good as those that were there when it was sent.
        limit, newest = body["sampling_params"]["max_new_tokens"], max(held, self._fleet.target.version)
        parts = [Draft.of_answer(answer, oldest=held, newest=newest, limit=limit) for answer in answers]
        for draft, part in zip(drafts, parts, strict=True):  # all samples of an answer count, or none
            draft.append(part)

    async def _answers(self, server: Server, body: dict[str, Any], *, single: bool) -> list[Answer]:
        limits: Any = {"timeout_s": self._timeout_s, "deadlines": server.deadlines}
        if single:
            return [await self._client.ask(server.generate_url, body, ONE_ANSWER, **limits)]
        return await self._client.ask(server.generate_url, body, ANSWERS, **limits)


def _name(request: ModelRequest) -> str:
    return f"request {request.rid}" if request.rid else f"a request with a prompt of {len(request.input_ids)} tokens"
