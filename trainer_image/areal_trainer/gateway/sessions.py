"""Sessions: a session's key is a trajectory. Keys, limits and expiry."""

from __future__ import annotations

import hmac
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from areal_api.agent_config import AgentConfig
from areal_trainer.gateway.conversation import ConversationTree
from areal_trainer.gateway.errors import GatewayError
from areal_trainer.gateway.messages import Message
from areal_trainer.gateway.settings import new_key

MAX_SESSIONS = 16384
MAX_KEY_LENGTH = 256
MAX_SESSION_BYTES = 256 << 20
MAX_BYTES = 4 << 30  # of all sessions

State = Literal["open", "ended"]


class Histories:
    """Messages up to each response, for ``previous_response_id``. A response that continues another adds to its."""

    def __init__(self) -> None:
        self._nodes: dict[str, tuple[str | None, list[Message]]] = {}
        self.size_bytes = 0

    def add(self, response_id: str, previous: str | None, messages: list[Message]) -> None:
        """Record the messages of a response after those of the ``previous`` one."""
        self._nodes[response_id] = (previous, messages)
        self.size_bytes += len(msgspec.json.encode(messages))

    def __contains__(self, response_id: str) -> bool:
        return response_id in self._nodes

    def messages(self, response_id: str) -> list[Message]:
        """All messages up to a response. Raises ``KeyError``."""
        parts: list[list[Message]] = []
        current: str | None = response_id
        while current is not None:
            current, messages = self._nodes[current]
            parts.append(messages)
        return [message for part in reversed(parts) for message in part]


@dataclass(eq=False)
class Session:
    """One session. It is open until its agent or the trainer ends it, or it expires."""

    id: str
    key: str
    task_id: str
    evaluation: bool
    deadline: float  # on the clock of the ``Sessions``
    tree: ConversationTree
    state: State = "open"
    calls: int = 0  # model calls that were admitted
    running: int = 0  # model calls in progress
    histories: Histories = field(default_factory=Histories)
    accounted_bytes: int = 0  # in the sum over all sessions

    @property
    def size_bytes(self) -> int:
        """What the session holds, roughly."""
        return self.tree.size_bytes + self.histories.size_bytes


@dataclass
class Counters:
    """Sessions and calls since the gateway started."""

    started: int = 0
    ended: int = 0
    ended_calls: int = 0  # of the sessions that ended
    rewarded: int = 0  # ended with a reward
    abandoned: int = 0  # ended without a reward
    expired: int = 0
    stale: int = 0  # ended sessions whose tokens were too old to train on
    calls: int = 0
    refused: int = 0  # requests that got an error status below 500
    failed: int = 0  # requests that got another error status


class Sessions:
    """All sessions that were not exported yet."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        admin_key: str,
        new_tree: Callable[[], ConversationTree],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._admin_key = admin_key
        self._new_tree = new_tree
        self._clock = clock
        self._by_id: dict[str, Session] = {}
        self._by_key: dict[str, Session] = {}
        self._numbers = itertools.count()
        self._held_bytes = 0
        self.counters = Counters()

    def __len__(self) -> int:
        return len(self._by_id)

    def check_admin(self, key: str) -> None:
        """Raise ``GatewayError`` unless ``key`` is the admin key."""
        if not hmac.compare_digest(key.encode(), self._admin_key.encode()):
            raise GatewayError(403, "this route needs the admin key, and the request has another one")

    def start(self, task_id: str, *, key: str | None, evaluation: bool, timeout_s: float | None) -> Session:
        """Open a session. ``key``: a key of the caller's choice; one whose session is open is refused."""
        self._expire()
        if len(self._by_id) >= MAX_SESSIONS:
            raise GatewayError(429, f"{MAX_SESSIONS} sessions are open or wait for export; end and export some first")
        if self._held_bytes > MAX_BYTES:
            raise GatewayError(429, f"the sessions hold {self._held_bytes} bytes; end and export some first")
        key = self._chosen_key(key) if key is not None else new_key()
        timeout_s = min(timeout_s or self._config.session_timeout_seconds, self._config.session_timeout_seconds)
        session = Session(
            f"{task_id[:200]}-{next(self._numbers)}",
            key,
            task_id,
            evaluation,
            self._clock() + timeout_s,
            self._new_tree(),
        )
        self._by_id[session.id] = self._by_key[session.key] = session
        self.counters.started += 1
        return session

    def _chosen_key(self, key: str) -> str:
        if not 16 <= len(key) <= MAX_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
            raise GatewayError(400, f"api_key must have 16 to {MAX_KEY_LENGTH} printable characters", field="api_key")
        if key == self._admin_key:
            raise GatewayError(400, "api_key is the admin key; choose another one", field="api_key")
        if (session := self._by_key.get(key)) is not None and session.state == "open":
            raise GatewayError(409, f"api_key belongs to session {session.id}, which is open", field="api_key")
        return key

    def by_key(self, key: str) -> Session:
        """The open session of ``key``; raises ``GatewayError``."""
        session = self._by_key.get(key)
        if session is None:
            hint = "this is the admin key; use the api_key that /rl/start_session returned"
            raise GatewayError(401, hint if key == self._admin_key else "the key belongs to no session")
        self._check_deadline(session)
        if session.state != "open":
            raise GatewayError(401, f"session {session.id} has ended")
        return session

    def is_open(self, session: Session) -> bool:
        """Whether a session has neither ended nor expired."""
        return session.state == "open" and self._clock() <= session.deadline

    def by_id(self, session_id: str) -> Session:
        """The session with this ID, open or ended; raises ``GatewayError``."""
        session = self._by_id.get(session_id)
        if session is None:
            raise GatewayError(404, f"there is no session {session_id[:200]!r}, or it was exported or has expired")
        return session

    def admit(self, session: Session) -> None:
        """Count a model call; raises ``GatewayError`` if the session may make no more."""
        if session.calls >= self._config.max_calls:
            raise GatewayError(
                429,
                f"session {session.id} made {session.calls} model calls, the most that rollout.agent.max_calls allows",
            )
        if session.running >= self._config.max_concurrent_calls:
            raise GatewayError(
                429,
                f"session {session.id} has {session.running} model calls in progress, the most that "
                "rollout.agent.max_concurrent_calls allows",
            )
        if session.size_bytes > MAX_SESSION_BYTES:
            raise GatewayError(429, f"session {session.id} holds {session.size_bytes} bytes; end it")
        session.calls += 1
        self.counters.calls += 1

    def account(self, session: Session) -> None:
        """Count what a session holds now."""
        if self._by_id.get(session.id) is session:
            self._held_bytes += session.size_bytes - session.accounted_bytes
            session.accounted_bytes = session.size_bytes

    def end(self, session: Session) -> None:
        """Accept no more calls and rewards."""
        if session.state == "open":
            session.state = "ended"
            self.counters.ended += 1
            self.counters.ended_calls += session.calls
            if any(one.reward is not None for one in session.tree.interactions):
                self.counters.rewarded += 1
            else:
                self.counters.abandoned += 1

    def remove(self, session: Session) -> None:
        """Forget a session."""
        if self._by_id.pop(session.id, None) is not None:
            self._held_bytes -= session.accounted_bytes
        if self._by_key.get(session.key) is session:
            del self._by_key[session.key]

    def _check_deadline(self, session: Session) -> None:
        if session.state == "open" and self._clock() > session.deadline:
            self.counters.expired += 1
            self.remove(session)
            raise GatewayError(401, f"session {session.id} has expired (rollout.agent.session_timeout_seconds)")

    def _expire(self) -> None:
        """Forget the sessions that passed their deadline: nobody will end or export them."""
        now = self._clock()
        for session in list(self._by_id.values()):
            if now <= session.deadline:
                break  # sessions are in the order of their start, and nearly all have the same timeout
            self.counters.expired += session.state == "open"
            self.remove(session)
