"""The gateway's application in this process, in front of an engine that says what the test wants."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from areal_api.agent_config import AgentConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.gateway.app import make_app
from areal_trainer.gateway.channel import Sample
from areal_trainer.gateway.completer import Completer
from areal_trainer.gateway.conversation import ConversationTree
from areal_trainer.gateway.errors import GatewayError
from areal_trainer.gateway.server import listen, make_server
from areal_trainer.gateway.sessions import Sessions
from areal_trainer.servers.generation import TokenLogprob
from support.chat_tokenizer import END, PAD, ChatTokenizer

ADMIN_KEY = "sk-admin-key-of-the-tests"
TOKENIZER = ChatTokenizer()


class Codec:
    """Decodes with the character tokenizer."""

    def decode(self, completions: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        return [TOKENIZER.decode(ids, skip_special_tokens=skip_special_tokens) for ids in completions]


@dataclass
class SpeakingEngine:
    """Gives the next of ``answers`` to each sample; the k-th has version k and log-probs -k."""

    answers: list[str]
    parsed: dict[str, Any] = field(default_factory=dict)  # by path
    stop_reason: str = "stop"
    calls: list[dict[str, Any]] = field(default_factory=list)
    parses: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    hold: asyncio.Event | None = None
    error: GatewayError | None = None

    async def generate(self, input_ids: list[int], **options: Any) -> list[Sample]:
        self.calls.append({"input_ids": input_ids, **options})
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        return [self._sample(options.get("top_logprobs", 0)) for _ in range(options["n"])]

    def _sample(self, top: int) -> Sample:
        text = self.answers.pop(0)
        tokens = TOKENIZER.encode(text) + [END] * (self.stop_reason == "stop")
        version = len(self.calls)
        ranks = range(top)
        candidates = [[TokenLogprob(-float(rank), token + rank) for rank in ranks] for token in tokens] if top else []
        return Sample(
            tokens,
            [-float(version)] * len(tokens),
            [version] * len(tokens),
            self.stop_reason,  # type: ignore[arg-type]
            candidates,
        )

    async def parse(self, path: str, body: dict[str, Any]) -> Any:
        self.parses.append((path, body))
        return self.parsed[path]


def render(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
    return TOKENIZER.apply_chat_template(messages, tools=tools or None, tokenize=False)


@dataclass
class Gateway:
    """The application and a client for it."""

    client: httpx.AsyncClient
    engine: SpeakingEngine
    sessions: Sessions
    app: Any

    async def start(self, **body: Any) -> tuple[str, dict[str, str]]:
        """A new session: its ID and the headers of its agent."""
        response = await self.admin("/rl/start_session", {"task_id": "task", **body})
        assert response.status_code == 200, response.text
        opened = response.json()
        return opened["session_id"], {"Authorization": f"Bearer {opened['api_key']}"}

    async def admin(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return await self.client.post(path, json=body, headers={"Authorization": f"Bearer {ADMIN_KEY}"})

    async def export(self, session_id: str, **body: Any) -> list[dict[str, Any]]:
        response = await self.admin("/export_trajectories", {"session_id": session_id, **body})
        assert response.status_code == 200, response.text
        trajectories: list[dict[str, Any]] = response.json()["trajectories"]
        return trajectories

    async def chat(self, headers: dict[str, str], messages: list[Any], **body: Any) -> httpx.Response:
        body = {"model": "default", "messages": messages, **body}
        return await self.client.post("/v1/chat/completions", json=body, headers=headers)


def build(
    *answers: str,
    agent: dict[str, Any] | None = None,
    gconfig: dict[str, Any] | None = None,
    clock: Any = None,
    **engine: Any,
) -> tuple[Any, SpeakingEngine, Sessions]:
    """The application, its model, which answers ``answers`` one after the other, and its sessions."""
    speaking = SpeakingEngine(list(answers), **engine)
    config = AgentConfig(**(agent or {}))
    sampling = GenerationHyperparameters(stop_token_ids=[PAD, END], **{"max_tokens": 4096, **(gconfig or {})})
    more = {"clock": clock} if clock else {}
    sessions = Sessions(
        config, admin_key=ADMIN_KEY, new_tree=lambda: ConversationTree(render, TOKENIZER.encode), **more
    )
    completer = Completer(speaking, sessions, Codec(), config, gconfig=sampling, eval_gconfig=sampling.new(greedy=True))
    return make_app(sessions, completer, config, model="org/model"), speaking, sessions


@asynccontextmanager
async def gateway_of(*answers: str, **settings: Any) -> AsyncIterator[Gateway]:
    """A gateway in this process; arguments are those of ``build``."""
    app, speaking, sessions = build(*answers, **settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield Gateway(client, speaking, sessions, app)


@dataclass
class Served:
    """A gateway that listens on a socket."""

    url: str
    client: httpx.Client
    engine: SpeakingEngine
    sessions: Sessions

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    def start(self, **body: Any) -> tuple[str, str]:
        """A new session: its ID and key."""
        opened = self.admin("/rl/start_session", {"task_id": "task", **body}).json()
        return opened["session_id"], opened["api_key"]

    def admin(self, path: str, body: dict[str, Any]) -> httpx.Response:
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        return self.client.post(path, json=body, headers=headers)


@contextmanager
def served(*answers: str, **settings: Any) -> Iterator[Served]:
    """A gateway on a socket of this machine, in a thread; arguments are those of ``build``."""
    app, speaking, sessions = build(*answers, **settings)
    listener = listen("127.0.0.1", 0)
    server = make_server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, timeout=60.0, trust_env=False) as client:
            yield Served(url, client, speaking, sessions)
    finally:
        server.should_exit = True
        thread.join(30.0)
        assert not thread.is_alive()


def text_of(trajectory: dict[str, Any]) -> str:
    return TOKENIZER.decode(trajectory["input_ids"], skip_special_tokens=False)


def trained_text(trajectory: dict[str, Any]) -> str:
    pairs = zip(trajectory["input_ids"], trajectory["loss_mask"], strict=True)
    return TOKENIZER.decode([token for token, trained in pairs if trained], skip_special_tokens=False)
