"""Samples completions: all samples of a prompt in one request, continued on another server if one fails."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

from areal_trainer.routing import Routing
from areal_trainer.servers.client import Client, ServerBusyError, ServerError, ServerLostError
from areal_trainer.servers.control import ServerTimings
from areal_trainer.servers.fleet import Fleet, Server
from areal_trainer.servers.generation import (
    COMPLETION,
    COMPLETIONS,
    ModelRequest,
    ModelResponse,
    PartialCompletion,
    WrongVersionError,
    check_token_ids,
    sampling_params,
)
from areal_trainer.tracing import span


class GenerationError(Exception):
    """A request failed ``rollout.request_retries`` times."""


class Sampler:
    """Samples completions from current servers: the least loaded one, or the one that has the conversation's cache."""

    def __init__(
        self,
        fleet: Fleet,
        client: Client,
        *,
        timings: ServerTimings,
        request_timeout_s: float,
        retries: int,
        vocab_size: int | None,
        routing: Routing | None = None,
    ) -> None:
        """``routing``: record the experts of all tokens, in this shape."""
        self._fleet = fleet
        self._client = client
        self._retry_wait_s = timings.retry_wait_s
        self._timeout_s = request_timeout_s
        self._retries = retries
        self._vocab_size = vocab_size
        self._routing = routing
        self._attempts = itertools.count()
        self._prompt_tokens = self._cached_tokens = 0

    async def sample(self, request: ModelRequest, n: int) -> list[ModelResponse]:
        """``n`` completions of one prompt, requested from one server at once; aborted ones are continued one by one.

        Raises ``ValueError`` for token ids outside the vocabulary and for prompts that leave no room for a completion,
        ``ServerRefusedError`` if a server rejects the request, ``GenerationError`` after too many attempts and
        ``NoServerError`` without any server.
        """
        check_token_ids(request.input_ids, self._vocab_size)
        started = time.perf_counter()
        completions = await self._request(request, None, n)
        unfinished = [completion for completion in completions if completion.stop_reason is None]
        if unfinished:
            await asyncio.gather(*(self._continue(request, completion) for completion in unfinished))
        latency_s = time.perf_counter() - started
        return [completion.response(request.input_ids, latency_s) for completion in completions]

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """The response of the server with the least load to a request that does not depend on its weights.

        Raises ``ServerRefusedError`` if it rejects the request, otherwise the errors of ``sample``.
        """
        tried: set[Server] = set()
        last: ServerError | None = None
        for attempt in range(self._retries):
            server = await self._fleet.acquire(tried)
            try:
                return await self._client.post(server.url(path), body, timeout_s=self._timeout_s)
            except ServerLostError as error:
                self._fleet.mark_gone(server, error)
                last = error
            except ServerBusyError as error:
                last = error
                await asyncio.sleep(self._retry_wait_s * 2**attempt)
            tried.add(server)
        raise GenerationError(f"{path} failed {self._retries} times (rollout.request_retries), last: {last}") from last

    def take_cache_hit_rate(self) -> float | None:
        """Share of prompt tokens since the last call that servers found in their prefix caches; None without any."""
        prompt, cached = self._prompt_tokens, self._cached_tokens
        self._prompt_tokens = self._cached_tokens = 0
        return cached / prompt if prompt else None

    async def _continue(self, request: ModelRequest, completion: PartialCompletion) -> None:
        """Finish an aborted completion from the tokens it has; a grammar can only start at the beginning."""
        without_progress = 0
        while completion.stop_reason is None:
            if request.json_schema is not None:
                completion.clear()
            [part] = await self._request(request, completion, 1)
            completion.append(part)
            progress = part.tokens and request.json_schema is None
            without_progress = 0 if progress else without_progress + 1
            if completion.stop_reason is None and without_progress >= self._retries:
                raise GenerationError(
                    f"{_describe(request)} was aborted {without_progress} times in a row without progress; "
                    "something aborts the servers' requests"
                )
            if without_progress and completion.stop_reason is None:
                await asyncio.sleep(self._retry_wait_s)

    async def _request(
        self, request: ModelRequest, before: PartialCompletion | None, n: int
    ) -> list[PartialCompletion]:
        """``n`` continuations of the prompt and the tokens ``before``; retries on another server if possible."""
        generated = [] if before is None else before.tokens
        params = sampling_params(request.gconfig, n=n, generated=len(generated), prompt_len=len(request.input_ids))
        body: dict[str, Any] = {
            "input_ids": request.input_ids + generated if generated else request.input_ids,
            "sampling_params": params,
            "return_logprob": True,
        }
        if request.json_schema is not None:
            params["json_schema"] = request.json_schema
        if request.top_logprobs:
            body["top_logprobs_num"] = request.top_logprobs
        if self._routing is not None:
            body["return_routed_experts"] = True
            body["routed_experts_start_len"] = 0 if before is None else before.tokens_with_experts
        tried: set[Server] = set()
        last: Exception | None = None
        for attempt in range(self._retries):
            server = await self._fleet.acquire(tried, request.conversation)
            if request.rid is not None:
                body["rid"] = f"{request.rid}-{next(self._attempts)}"  # servers reject an id that is in use
            try:
                with span("generate", server=server.address, samples=n, prompt_tokens=len(body["input_ids"])) as opened:
                    completions = await self._request_server(server, body, n)
                    opened.set_attribute("tokens", sum(len(one.tokens) for one in completions))
                return completions
            except ServerLostError as error:
                self._fleet.mark_gone(server, error)
                last = error
            except WrongVersionError as error:
                self._fleet.mark_stale(server, error)
                last = error
            except ServerBusyError as error:
                last = error
                await asyncio.sleep(self._retry_wait_s * 2**attempt)
            tried.add(server)
        raise GenerationError(
            f"{_describe(request)} failed {self._retries} times (rollout.request_retries), last: {last}"
        ) from last

    async def _request_server(self, server: Server, body: dict[str, Any], n: int) -> list[PartialCompletion]:
        version_before, post, url = server.version, self._client.post_decoded, server.generate_url
        limits: Any = {"timeout_s": self._timeout_s, "deadlines": server.deadlines}
        server.add_load(n)
        try:
            completions = (
                [await post(url, body, COMPLETION, **limits)]
                if n == 1
                else await post(url, body, COMPLETIONS, **limits)
            )
        finally:
            server.add_load(-n)
        if len(completions) != n:
            raise ServerError(f"{server.address} returned {len(completions)} samples for {n}")
        for completion in completions:
            self._prompt_tokens += completion.meta_info.prompt_tokens
            self._cached_tokens += completion.meta_info.cached_tokens
        # Weights loaded while the request ran are valid too.
        expected: Any = {
            "oldest": version_before,
            "newest": max(version_before, self._fleet.target.version),
            "limit": body["sampling_params"]["max_new_tokens"],
            "routing": self._routing,
            "unrouted": len(body["input_ids"]) - body.get("routed_experts_start_len", 0),
        }
        return [PartialCompletion.from_server(completion, **expected) for completion in completions]


def _describe(request: ModelRequest) -> str:
    return f"request {request.rid}" if request.rid else f"a request with a prompt of {len(request.input_ids)} tokens"
