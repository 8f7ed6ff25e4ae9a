"""The gateway's routes.

Agents use a session's key and the routes of OpenAI or Anthropic; whoever opens sessions uses the admin key. SDKs
disagree on whether a base URL ends in ``/v1``, so every route of a protocol exists with and without it.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from areal_api.agent_config import AgentConfig
from areal_trainer.gateway import anthropic, chat, responses
from areal_trainer.gateway.admission import Admission
from areal_trainer.gateway.completer import Completed, Completer
from areal_trainer.gateway.completer import Request as ModelRequest
from areal_trainer.gateway.errors import GatewayError, error_body, protocol_of
from areal_trainer.gateway.groups import Groups
from areal_trainer.gateway.http import (
    json_object,
    json_response,
    key_of,
    stream,
    unless_disconnected,
)
from areal_trainer.gateway.messages import invalid
from areal_trainer.gateway.sampling import boolean, integer
from areal_trainer.gateway.sessions import MAX_SESSIONS, Session, Sessions

logger = logging.getLogger(__name__)
DEFAULT_MODEL = "default"
MAX_TASK_ID_LENGTH = 1024
WAIT_S = 30.0  # for a task, unless the request says otherwise
MAX_WAIT_S = 300.0


def make_app(sessions: Sessions, completer: Completer, config: AgentConfig, *, model: str) -> FastAPI:
    """The application. ``model``: the model's name; requests may also call it ``default``."""
    app = FastAPI(openapi_url=None)
    app.add_middleware(Admission)
    app.add_exception_handler(GatewayError, _on_error(sessions))
    app.add_exception_handler(HTTPException, _on_error(sessions))
    app.add_exception_handler(Exception, _on_error(sessions))
    Administration(sessions, config).add_routes(app)
    Models(sessions, model).add_routes(app)
    Completions(sessions, completer, config, model).add_routes(app)
    return app


def _on_error(sessions: Sessions) -> Any:
    async def respond(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            hint = "it is not a route of the gateway" if error.status_code == 404 else str(error.detail)
            error = GatewayError(error.status_code, f"{request.method} {request.url.path[:200]}: {hint}")
        elif not isinstance(error, GatewayError):
            logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
            error = GatewayError(500, f"internal error of the gateway: {type(error).__name__}")
        if error.status < 500:
            sessions.counters.refused += 1
        else:
            sessions.counters.failed += 1
        return json_response(error_body(error, protocol_of(request.url.path)), status=error.status)

    return respond


class Administration:
    """Sessions and rewards, in the form of AReaL's proxy."""

    def __init__(self, sessions: Sessions, config: AgentConfig) -> None:
        self._sessions = sessions
        self._config = config
        self._groups = Groups(sessions.counters, is_open=sessions.is_open)
        self._numbers = itertools.count(1)  # of the trainer's requests

    def add_routes(self, app: FastAPI) -> None:
        """Register the routes."""
        app.post("/rl/next_group")(self.next_group)
        app.post("/rl/next_task")(self.next_task)
        app.get("/health")(self.health)
        app.post("/rl/start_session")(self.start_session)
        app.post("/rl/set_reward")(self.set_reward)
        app.post("/rl/end_session")(self.end_session)
        app.post("/export_trajectories")(self.export_trajectories)
        app.get("/rl/statistics")(self.statistics)

    async def health(self, request: Request) -> Response:
        """Whether the gateway answers."""
        return json_response({"status": "ok"})

    async def start_session(self, request: Request) -> Response:
        """Open a session: its ID and key."""
        self._sessions.check_admin(key_of(request))
        body = await json_object(request)
        task_id = _text(body, "task_id", required=False)
        if len(task_id) > MAX_TASK_ID_LENGTH:
            raise invalid("task_id", f"has {len(task_id)} characters; at most {MAX_TASK_ID_LENGTH} are allowed")
        session = self._sessions.start(
            task_id,
            key=_text(body, "api_key", required=False) or None,
            evaluation=boolean(body, "evaluation"),
            timeout_s=_number(body, "timeout_seconds", required=False),
        )
        return json_response({"session_id": session.id, "api_key": session.key})

    async def set_reward(self, request: Request) -> Response:
        """Set the reward of a completion of the session, by default of the last one."""
        session = self._sessions.by_key(key_of(request))
        body = await json_object(request)
        reward = _number(body, "reward", required=True)
        assert reward is not None
        _set_reward(session, _text(body, "interaction_id", required=False) or None, reward)
        return json_response({"message": "success"})

    async def end_session(self, request: Request) -> Response:
        """Accept no more calls and rewards from the session."""
        session = self._sessions.by_key(key_of(request))
        self._sessions.end(session)
        if self._config.mode == "online":
            self._groups.add(session)
        return json_response(
            {"message": "success", "session_id": session.id, "interaction_count": len(session.tree.interactions)}
        )

    async def export_trajectories(self, request: Request) -> Response:
        """End a session, set ``rewards`` (a number or numbers by completion ID), and return and forget its samples."""
        self._sessions.check_admin(key_of(request))
        body = await json_object(request)
        session = self._sessions.by_id(_text(body, "session_id", required=True))
        discount = _number(body, "discount", required=False)
        style = _text(body, "style", required=False) or self._config.export_style
        if style not in ("individual", "concat"):
            raise invalid("style", f"is {style!r:.80}; use individual or concat")
        for interaction_id, reward in _rewards(body.get("rewards")).items():
            if session.tree.interactions:
                _set_reward(session, interaction_id, reward)
        self._sessions.end(session)
        discount = self._config.turn_discount if discount is None else discount
        return json_response(self._export(session, discount=discount, style=style))

    async def next_group(self, request: Request) -> Response:
        """Wait for ``size`` ended sessions of one task, and return and forget their samples; for the trainer.

        Sessions with tokens older than weight version ``oldest_version`` are dropped. ``data`` is the row that
        /rl/next_task hands out, and ``task_id`` its ID.
        """
        self._sessions.check_admin(key_of(request))
        body = await json_object(request)
        size = integer(body, "size", low=1, high=MAX_SESSIONS) or 1
        oldest = integer(body, "oldest_version", low=0, high=1 << 31) or 0
        row = body.get("data")
        if row is not None and not isinstance(row, dict):
            raise invalid("data", f"is {row!r:.80}; use an object")
        task_id = f"{_text(body, 'task_id', required=False)[:200]}#{next(self._numbers)}"
        wait = self._groups.take(task_id, size, oldest_version=oldest, row=row)
        group = await unless_disconnected(request, wait)
        discount, style = self._config.turn_discount, self._config.export_style
        exports = [self._export(session, discount=discount, style=style) for session in group]
        return json_response({"task_id": group[0].task_id, "sessions": exports})

    async def next_task(self, request: Request) -> Response:
        """Open a session on a row that the trainer asks for: the row as ``data``, and the session's ID and key.

        Status 204 after ``wait_seconds`` in which the trainer wanted none.
        """
        self._sessions.check_admin(key_of(request))
        body = await json_object(request)
        if self._config.mode != "online":
            raise GatewayError(409, "rollout.agent.mode is not online: the trainer runs its own agent")
        wait_s = _number(body, "wait_seconds", required=False)
        wait_s = WAIT_S if wait_s is None else wait_s
        if not 0 <= wait_s <= MAX_WAIT_S:
            raise invalid("wait_seconds", f"is {wait_s:g}; use 0 to {MAX_WAIT_S:g}")
        timeout_s = _number(body, "timeout_seconds", required=False)

        def start(task_id: str) -> Session:
            return self._sessions.start(task_id, key=None, evaluation=False, timeout_s=timeout_s)

        try:
            wait = self._groups.start_on_row(start, wait_s=wait_s)
            session, row = await unless_disconnected(request, wait)
        except TimeoutError:
            return Response(status_code=204)
        return json_response(
            {"task_id": session.task_id, "session_id": session.id, "api_key": session.key, "data": row}
        )

    def _export(self, session: Session, *, discount: float, style: str) -> dict[str, Any]:
        self._sessions.remove(session)
        rewards = [one.reward for one in session.tree.interactions if one.reward is not None]
        samples = session.tree.export(turn_discount=discount, style=style)
        return {"reward": sum(rewards) if rewards else None, "trajectories": samples}

    async def statistics(self, request: Request) -> Response:
        """Counts of sessions and calls since the gateway started."""
        self._sessions.check_admin(key_of(request))
        return json_response(asdict(self._sessions.counters) | {"open": len(self._sessions)})


class Models:
    """The list of models: the one that is trained."""

    def __init__(self, sessions: Sessions, model: str) -> None:
        self._sessions = sessions
        self._model = model

    def add_routes(self, app: FastAPI) -> None:
        """Register the routes."""
        for prefix in ("/v1", ""):
            app.get(f"{prefix}/models")(self.models)
            app.get(f"{prefix}/models/{{name:path}}")(self.model)

    async def models(self, request: Request) -> Response:
        """The names that requests may use."""
        self._sessions.by_key(key_of(request))
        names = dict.fromkeys([DEFAULT_MODEL, self._model])
        return json_response({"object": "list", "data": [_model(name) for name in names]})

    async def model(self, request: Request, name: str) -> Response:
        """One of the names."""
        self._sessions.by_key(key_of(request))
        check_model({"model": name}, self._model)
        return json_response(_model(name))


class Call(Protocol):
    """A parsed request of a protocol, and the form of its answer."""

    @property
    def request(self) -> ModelRequest:
        """What to complete."""

    @property
    def stream(self) -> bool:
        """Whether the answer is a stream of events."""

    def response(self, completed: Completed) -> dict[str, Any]:
        """The body of a response that is not streamed."""

    def events(self, completed: Completed) -> Iterable[bytes]:
        """The events of a streamed response."""


class Completions:
    """The routes that complete conversations: chat completions, responses, and Anthropic's messages."""

    def __init__(self, sessions: Sessions, completer: Completer, config: AgentConfig, model: str) -> None:
        self._sessions = sessions
        self._completer = completer
        self._config = config
        self._model = model

    def add_routes(self, app: FastAPI) -> None:
        """Register the routes."""
        for prefix in ("/v1", ""):
            app.add_route(f"{prefix}/chat/completions", partial(self._complete, chat.parse), methods=["POST"])
            app.add_route(f"{prefix}/responses", partial(self._complete, responses.parse), methods=["POST"])
            app.add_route(f"{prefix}/messages", partial(self._complete, anthropic.parse), methods=["POST"])
            app.post(f"{prefix}/messages/count_tokens")(self.count_tokens)

    async def _complete(self, parse: Callable[..., Call], request: Request) -> Response:
        session = self._sessions.by_key(key_of(request))
        body = await json_object(request)
        check_model(body, self._model)
        call = parse(body, session, self._completer, ignore_unsupported=self._completer.ignores_unsupported(session))
        work = self._completer.complete(session, call.request)
        if call.stream:
            return await stream(request, work, call.events, protocol=protocol_of(request.url.path))
        return json_response(call.response(await unless_disconnected(request, work)))

    async def count_tokens(self, request: Request) -> Response:
        """Anthropic's count of a prompt's tokens."""
        session = self._sessions.by_key(key_of(request))
        body = await json_object(request)
        check_model(body, self._model)
        parsed = anthropic.conversation_of(body, self._completer.preprocess)
        return json_response({"input_tokens": self._completer.count_tokens(session, parsed)})


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "areal"}


def check_model(body: dict[str, Any], model: str) -> None:
    """Raise ``GatewayError`` unless the request names the model that is trained."""
    name = body.get("model")
    if name not in (DEFAULT_MODEL, model):
        raise GatewayError(
            404,
            f"model is {name!r:.80}; use {DEFAULT_MODEL!r} or {model!r}",
            field="model",
            code="model_not_found",
        )


def _set_reward(session: Session, interaction_id: str | None, reward: float) -> None:
    try:
        session.tree.set_reward(interaction_id, reward)
    except KeyError:
        name = "a completion" if interaction_id is None else f"completion {interaction_id[:200]!r}"
        raise GatewayError(
            404, f"session {session.id} has no {name.removeprefix('a ')}", field="interaction_id"
        ) from None


def _rewards(value: Any) -> dict[str | None, float]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        value = {None: value}
    return {key: _finite(reward, "rewards") for key, reward in value.items()}


def _finite(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise invalid(field, f"is {value!r:.80}; use a finite number")
    return float(value)


def _number(body: dict[str, Any], field: str, *, required: bool) -> float | None:
    value = body.get(field)
    return None if value is None and not required else _finite(value, field)


def _text(body: dict[str, Any], field: str, *, required: bool) -> str:
    value = body.get(field)
    if value is None and not required:
        return ""
    if not isinstance(value, str) or (required and not value):
        raise invalid(field, f"is {value!r:.80}; use text")
    return value
