"""HTTP routes of the scripted server: SGLang's response formats, a clock instead of a model, scripted faults."""

from __future__ import annotations

import asyncio
import base64
import collections
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from areal_api import names
from areal_server.download_weights import DownloadedWeights
from support.prefix_cache import PrefixCache
from support.scripted_answers import Fault, Sample, Script, routed_experts, sample

_SAMPLING_KEYS = frozenset({
    "max_new_tokens", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p", "top_k", "min_p", "n",
    "frequency_penalty", "presence_penalty", "repetition_penalty", "min_new_tokens", "json_schema", "regex", "ebnf",
    "structural_tag", "ignore_eos", "skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim",
    "stream_interval", "logit_bias", "sampling_seed", "custom_params", "beam_width", "watermark",
})  # fmt: skip
_OPEN_PATHS = frozenset({"/health", "/health_generate", "/ready", "/metrics"})
_JSON = {"Content-Type": "application/json"}

Handler = Callable[[dict[str, Any]], Awaitable[web.StreamResponse]]


@dataclass
class Run:
    """An admitted request: n samples decoded concurrently, on a clock that a pause stops."""

    rid: str
    input_ids: list[int]
    samples: list[Sample]
    params: dict[str, Any]
    body: dict[str, Any]
    done: asyncio.Future[bool]  # True when it was aborted
    arrived: float
    progress_s: float = 0.0
    resumed_at: float | None = None
    cached: int = 0  # tokens of the prompt that were in the prefix cache
    timer: asyncio.TimerHandle | None = None
    versions: list[tuple[str, list[int]]] = field(default_factory=list)  # (version, tokens of each sample at its end)

    @property
    def duration_s(self) -> float:
        return max(s.duration_s for s in self.samples)

    def tokens_made(self, now: float) -> list[int]:
        elapsed = self.progress_s + (now - self.resumed_at if self.resumed_at is not None else 0.0)
        return [
            len(s.tokens) if elapsed >= s.duration_s else int(len(s.tokens) * elapsed / s.duration_s)
            for s in self.samples
        ]


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, headers=_JSON)


def _refused(message: str) -> web.Response:
    return _json({"error": {"message": message}}, 400)


class ScriptedService:
    """Routes and state of a scripted server; used on one event loop."""

    def __init__(self, script: Script, die: Callable[[], None], restart: Callable[[float], None]) -> None:
        self.script = script
        self.version = script.weight_version
        self.model_path = "scripted"
        self.draining = False  # SGLang after SIGTERM: only /ready shows it; requests are still accepted
        self.faults: list[Fault] = list(script.faults)
        self.released = asyncio.Event()
        self.counts: collections.Counter[str] = collections.Counter()
        self._die, self._restart = die, restart
        self._fault_hits: collections.Counter[int] = collections.Counter()
        self._runs: dict[str, Run] = {}
        self._cache = PrefixCache() if script.prefix_cache else None
        self._queue: collections.deque[Run] = collections.deque()
        self._running_samples = 0
        self._open = asyncio.Event()
        self._open.set()
        self._frozen = False
        self._idle = asyncio.Condition()
        self._loading = asyncio.Lock()
        self._routes: dict[str, Handler] = {
            "/generate": self._generate,
            "/health": self._health,
            "/health_generate": self._health,
            "/ready": self._ready,
            "/model_info": self._model_info,
            "/server_info": self._server_info,
            "/v1/loads": self._loads,
            "/flush_cache": self._flush_cache,
            "/pause_generation": self._pause,
            "/continue_generation": self._continue,
            "/abort_request": self._abort,
            "/update_weights_from_disk": self._update_from_disk,
            "/update_weight_version": self._update_version,
            names.SERVER_WEIGHTS_PATH: self._download,
            "/script/faults": self._add_faults,
            "/script/counts": self._counts,
        } | dict.fromkeys(script.more_routes, self._succeed)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        self.counts[path] += 1
        key = self.script.api_key
        if key is not None and path not in _OPEN_PATHS and request.headers.get("Authorization") != f"Bearer {key}":
            return _json({"error": "Unauthorized"}, 401)
        route = self._routes.get(path)
        if route is None:
            return _json({"detail": "Not Found"}, 404)
        raw = await request.read()
        try:
            body = orjson.loads(raw) if raw else ({} if request.method == "GET" else None)
        except orjson.JSONDecodeError as error:
            return _refused(f"invalid JSON: {error}")
        if body is None and path != "/flush_cache":
            return _refused("Field required: body")
        fault = self._next_fault(path) if self.faults else None
        if fault is not None:
            return await self._fail(fault, request, route, body)
        return await route(body)

    # Faults

    def _next_fault(self, path: str) -> Fault | None:
        for i, fault in enumerate(self.faults):
            if fault.path != path:
                continue
            self._fault_hits[i] += 1
            hit = self._fault_hits[i] - fault.skip
            if hit > 0 and (fault.times == 0 or hit <= fault.times):
                return fault
        return None

    async def _fail(self, fault: Fault, request: web.BaseRequest, route: Handler, body: Any) -> web.StreamResponse:
        if fault.kind == "delay":
            await asyncio.sleep(fault.delay_s)
            return await route(body)
        if fault.kind == "status":
            return web.Response(text=fault.body, status=fault.status, headers=_JSON)
        if fault.kind == "hold":
            await self.released.wait()
            return await route(body)
        if fault.kind == "hang":
            await asyncio.Event().wait()
        if fault.kind == "abort":
            body = {**body, "rid": body.get("rid") or uuid.uuid4().hex}
            answer = asyncio.ensure_future(route(body))
            await asyncio.sleep(fault.delay_s)
            self._abort_runs(lambda run: run.rid == body["rid"])
            return await answer
        if fault.kind == "die":
            self._die()
        if fault.kind == "restart":
            self._restart(fault.delay_s)
        if fault.kind == "half":
            whole = await route(body)
            assert isinstance(whole, web.Response)
            assert isinstance(whole.body, bytes)
            response = web.StreamResponse(headers={**_JSON, "Content-Length": str(len(whole.body))})
            await response.prepare(request)
            await response.write(whole.body[: len(whole.body) // 2])
        assert request.transport is not None
        request.transport.abort()
        raise ConnectionResetError("scripted fault")

    async def _add_faults(self, body: Any) -> web.StreamResponse:
        self.faults += [Fault(**fault) for fault in body]
        return _json({"success": True})

    async def _succeed(self, body: Any) -> web.StreamResponse:
        return _json({"success": True})

    async def _counts(self, body: Any) -> web.StreamResponse:
        return _json(dict(self.counts))

    # Generation

    def _refusal(self, body: dict[str, Any], params: dict[str, Any]) -> web.Response | None:
        """SGLang's response to a request that it rejects."""
        script, input_ids = self.script, body.get("input_ids")
        if unknown := set(params) - _SAMPLING_KEYS:
            return _json({"error": f"unknown field `{min(unknown)}` in sampling_params"}, 400)
        if not input_ids or isinstance(input_ids[0], list):
            return _refused("the scripted server takes input_ids: one list of token ids a request")
        if body.get("stream"):
            return _refused("the scripted server does not stream")
        if max(input_ids) >= script.vocab_size:
            self._die()  # like SGLang
            raise ConnectionResetError("token id beyond the vocabulary")
        limit = params.get("max_new_tokens", 128)
        if len(input_ids) + limit > script.context_length:
            return _refused(
                f"Requested token count exceeds the model's maximum context length of {script.context_length} tokens: "
                f"{len(input_ids)} tokens of the prompt and {limit} tokens for the completion."
            )
        if body.get("rid") in self._runs:
            return _refused(f"Duplicate request ID detected: {body['rid']}")
        return None

    async def _generate(self, body: dict[str, Any]) -> web.StreamResponse:
        params = body.get("sampling_params") or {}
        if (refusal := self._refusal(body, params)) is not None:
            return refusal
        input_ids = body["input_ids"]
        now = time.perf_counter()
        while not self._open.is_set() or self._loading.locked():
            await self._open.wait()
            async with self._loading:  # no request is admitted during a weight update
                pass
        samples = [sample(self.script, input_ids, params, i) for i in range(params.get("n", 1))]
        rid = body.get("rid") or uuid.uuid4().hex
        run = Run(rid, input_ids, samples, params, body, asyncio.get_running_loop().create_future(), arrived=now)
        if self._cache is not None:
            run.cached = self._cache.find(input_ids)
            self._cache.add(input_ids)
        if not run.duration_s:
            return _json(self._answer(run, [len(s.tokens) for s in samples], aborted=False))
        self._runs[rid] = run
        self._queue.append(run)
        self._start_queued()
        try:
            aborted = await run.done
        finally:
            await self._leave(run)
        return _json(self._answer(run, run.tokens_made(time.perf_counter()), aborted=aborted))

    def _start_queued(self) -> None:
        limit = self.script.max_running
        while self._queue and not self._frozen:
            run = self._queue[0]
            if limit is not None and self._running_samples and self._running_samples + len(run.samples) > limit:
                return
            self._queue.popleft()
            self._running_samples += len(run.samples)
            self._resume(run)

    def _resume(self, run: Run) -> None:
        run.resumed_at = time.perf_counter()
        loop = asyncio.get_running_loop()
        run.timer = loop.call_later(run.duration_s - run.progress_s, self._finish, run)

    def tokens_in_flight(self) -> int:
        """Tokens generated so far for requests in flight."""
        now = time.perf_counter()
        return sum(sum(run.tokens_made(now)) for run in list(self._runs.values()))

    def _finish(self, run: Run, aborted: bool = False) -> None:
        if not run.done.done():
            if run.timer is not None and not aborted:
                run.progress_s = run.duration_s  # the timer may fire a clock tick early
            run.done.set_result(aborted)

    def _freeze(self, run: Run) -> None:
        if run.timer is not None and run.resumed_at is not None:
            run.timer.cancel()
            run.progress_s += time.perf_counter() - run.resumed_at
            run.resumed_at = None

    async def _leave(self, run: Run) -> None:
        self._runs.pop(run.rid, None)
        if run in self._queue:
            self._queue.remove(run)
        else:
            self._freeze(run)
            self._running_samples -= len(run.samples)
        self._start_queued()
        async with self._idle:
            self._idle.notify_all()

    def _answer(self, run: Run, made: list[int], *, aborted: bool) -> Any:
        single = run.params.get("n", 1) == 1
        answers = [self._answer_one(run, i, made, aborted, single) for i in range(len(made))]
        return answers[0] if single else answers

    def _answer_one(self, run: Run, i: int, made: list[int], aborted: bool, single: bool) -> dict[str, Any]:
        whole, count = run.samples[i], made[i]
        cut = aborted and count < len(whole.tokens)
        meta: dict[str, Any] = {
            "id": run.rid if single else uuid.uuid4().hex,
            "finish_reason": {"type": "abort", "message": "Aborted"} if cut else whole.finish_reason,
            "weight_version": self.version,
            "e2e_latency": time.perf_counter() - run.arrived,
        }
        if cut and run.timer is None:  # never left the queue
            return {"output_ids": [], "meta_info": {**meta, "completion_tokens": 0}}
        spans, start = [], 0
        for version, ends in [*run.versions, (self.version, made)]:
            if ends[i] > start or (version == self.version and not spans):
                spans.append({"version": version, "start": start, "end": ends[i]})
                start = ends[i]
        meta |= {
            "weight_version": spans[-1]["version"],
            "weight_versions": spans,
            "prompt_tokens": len(run.input_ids),
            "completion_tokens": count,
            "cached_tokens": run.cached,
        }
        tokens = whole.tokens[:count]
        if self._cache is not None:
            self._cache.add([*run.input_ids, *tokens[:-1]])  # nothing has processed the last token
        if run.body.get("return_logprob"):
            logprobs = zip(whole.logprobs[:count], tokens, strict=True)
            meta["output_token_logprobs"] = [(logprob, token, None) for logprob, token in logprobs]
        if run.body.get("return_routed_experts") and self.script.experts is not None:
            processed = [*run.input_ids, *tokens][:-1]  # nothing has processed the last token
            chosen = routed_experts(self.script.experts, processed, run.body.get("routed_experts_start_len", 0))
            meta["routed_experts"] = base64.b64encode(chosen).decode()
        return {"output_ids": tokens, "meta_info": meta}

    # Control

    async def _health(self, body: Any) -> web.StreamResponse:
        await asyncio.sleep(self.script.health_s)
        return web.Response(status=503 if self._frozen else 200)

    async def _ready(self, body: Any) -> web.StreamResponse:
        return web.Response(status=200 if self._open.is_set() and not self.draining else 503)

    async def _model_info(self, body: Any) -> web.StreamResponse:
        return _json({"model_path": self.model_path, "weight_version": self.version, "is_generation": True})

    async def _server_info(self, body: Any) -> web.StreamResponse:
        return _json({"tp_size": 1, "dp_size": 1, "max_total_num_tokens": self.script.cache_tokens})

    async def _loads(self, body: Any) -> web.StreamResponse:
        load = {"num_running_reqs": self._running_samples, "num_waiting_reqs": len(self._queue), "token_usage": 0.0}
        return _json({"loads": [{"dp_rank": 0, **load}]})

    async def _flush_cache(self, body: Any) -> web.StreamResponse:
        if self._runs and not self._frozen:
            return web.Response(text="Flush cache failed.\n", status=400)
        self._clear_cache()
        return web.Response(text="Cache flushed.\n")

    async def _pause(self, body: dict[str, Any]) -> web.StreamResponse:
        mode = body.get("mode", "abort")
        if mode not in ("abort", "retract", "in_place"):
            return _refused(f"mode: {mode!r} is not one of abort, retract, in_place")
        self._open.clear()
        if mode == "abort":
            self._abort_runs(lambda run: True)
            async with self._idle:
                await self._idle.wait_for(lambda: not self._runs)
        else:
            self._frozen = True
            for run in self._runs.values():
                self._freeze(run)
        return _json({"message": "Generation paused successfully.", "status": "ok"})

    async def _continue(self, body: dict[str, Any]) -> web.StreamResponse:
        self._frozen = False
        for run in self._runs.values():
            if run.timer is not None and not run.done.done():
                self._resume(run)
        self._start_queued()
        self._open.set()
        return _json({"message": "Generation continued successfully.", "status": "ok"})

    def _abort_runs(self, which: Callable[[Run], bool]) -> None:
        for run in [run for run in self._runs.values() if which(run)]:
            self._finish(run, aborted=True)

    async def _abort(self, body: dict[str, Any]) -> web.StreamResponse:
        rid, everything = body.get("rid"), body.get("abort_all", False)
        # SGLang assigns each of n > 1 samples its own ID, so the request's ID matches none of them.
        self._abort_runs(lambda run: everything or (run.rid == rid and len(run.samples) == 1))
        return web.Response()

    def _clear_cache(self) -> None:
        if self._cache is not None:
            self._cache.clear()

    def _set_version(self, version: str) -> None:
        self._clear_cache()
        now = time.perf_counter()
        for run in self._runs.values():
            if run.timer is not None and not run.done.done():
                run.versions.append((self.version, run.tokens_made(now)))
        self.version = version

    async def _update_from_disk(self, body: dict[str, Any]) -> web.StreamResponse:
        path = body.get("model_path", "")
        if not Path(path).is_dir():
            message = f"Failed to get model config: {path} does not exist."
            return _json({"success": False, "message": message, "num_paused_requests": 0}, 400)
        if body.get("abort_all_requests"):
            self._abort_runs(lambda run: True)
        async with self._loading:
            if self._open.is_set():
                async with self._idle:
                    await self._idle.wait_for(lambda: not self._runs)
            await asyncio.sleep(self.script.load_s)
            self.model_path = path
            if body.get("weight_version") is not None:
                self._set_version(body["weight_version"])
        return _json({"success": True, "message": "Succeeded to update model weights.", "num_paused_requests": 0})

    async def _download(self, body: dict[str, Any]) -> web.StreamResponse:
        assert self.script.downloads_to is not None
        weights = DownloadedWeights(Path(self.script.downloads_to), api_key=self.script.api_key)
        return _json({"path": str(await asyncio.to_thread(weights.fetch, body))})

    async def _update_version(self, body: dict[str, Any]) -> web.StreamResponse:
        if body.get("abort_all_requests", True):
            self._abort_runs(lambda run: True)
        self._set_version(body["new_version"])
        return _json({"success": True, "message": f"Weight version updated to {self.version}"})
