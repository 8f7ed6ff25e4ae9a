"""Sessions: keys, limits, expiry, and what they hold."""

from __future__ import annotations

from typing import Any

import pytest

from areal_api.agent_config import AgentConfig
from areal_trainer.gateway import sessions as module
from areal_trainer.gateway.channel import Sample
from areal_trainer.gateway.conversation import ConversationTree
from areal_trainer.gateway.errors import GatewayError
from areal_trainer.gateway.sessions import Histories, Session, Sessions
from support.gateway_app import ADMIN_KEY, TOKENIZER, render


def sessions_of(times: list[float] | None = None, **agent: Any) -> Sessions:
    clock = times or [0.0]
    return Sessions(
        AgentConfig(**agent),
        admin_key=ADMIN_KEY,
        new_tree=lambda: ConversationTree(render, TOKENIZER.encode),
        clock=lambda: clock[0],
    )


def start(sessions: Sessions, **options: Any) -> Session:
    return sessions.start("task", **{"key": None, "evaluation": False, "timeout_s": None, **options})


def test_a_key_belongs_to_one_open_session() -> None:
    sessions = sessions_of()
    first = start(sessions, key="sk-chosen-by-the-caller")
    assert sessions.by_key(first.key) is first
    with pytest.raises(GatewayError, match="which is open"):
        start(sessions, key=first.key)
    sessions.end(first)
    second = start(sessions, key=first.key)
    assert sessions.by_key(first.key) is second
    sessions.remove(first)
    assert sessions.by_key(first.key) is second


@pytest.mark.parametrize(
    "key", ["short", "x" * 257, "with space and more", "tab\tand more text", "ümlaut-and-more-text"]
)
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(GatewayError, match="16 to 256 printable characters"):
        start(sessions_of(), key=key)


def test_the_admin_key_opens_sessions_and_is_none() -> None:
    sessions = sessions_of()
    sessions.check_admin(ADMIN_KEY)
    for refused in (lambda: sessions.check_admin("sk-other"), lambda: start(sessions, key=ADMIN_KEY)):
        with pytest.raises(GatewayError):
            refused()
    with pytest.raises(GatewayError, match="this is the admin key"):
        sessions.by_key(ADMIN_KEY)


def test_an_expired_session_is_forgotten_and_counted_once() -> None:
    times = [0.0]
    sessions = sessions_of(times, session_timeout_seconds=10.0)
    early = start(sessions, timeout_s=5.0)
    late = start(sessions, timeout_s=50.0)
    assert (early.deadline, late.deadline) == (5.0, 10.0)
    times[0] = 6.0
    with pytest.raises(GatewayError, match="has expired"):
        sessions.by_key(early.key)
    with pytest.raises(GatewayError, match="belongs to no session"):
        sessions.by_key(early.key)
    times[0] = 11.0
    start(sessions)
    assert (len(sessions), sessions.counters.expired) == (1, 2)


def test_sessions_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SESSIONS", 2)
    sessions = sessions_of()
    first, _ = start(sessions), start(sessions)
    with pytest.raises(GatewayError, match="2 sessions are open") as caught:
        start(sessions)
    assert caught.value.status == 429
    sessions.remove(first)
    start(sessions)


def test_sessions_end_with_or_without_a_reward() -> None:
    sessions = sessions_of()
    for reward in (None, None, 1.0):
        session = start(sessions)
        if reward is not None:
            prompt = session.tree.prompt([{"role": "user", "content": "1+1?"}], [])
            sample = sample_of("2")
            session.tree.add(prompt, "id", [(sample, "2", {"role": "assistant", "content": "2"})])
            session.tree.set_reward(None, reward)
        sessions.end(session)
        sessions.end(session)
    assert (sessions.counters.ended, sessions.counters.rewarded, sessions.counters.abandoned) == (3, 1, 2)


def sample_of(text: str) -> Sample:
    tokens = TOKENIZER.encode(text)
    return Sample(tokens, [0.0] * len(tokens), [0] * len(tokens), "stop")


def test_a_chain_of_responses_holds_each_message_once() -> None:
    histories = Histories()
    message = {"role": "user", "content": "x" * 1000}
    previous = None
    for number in range(50):
        histories.add(f"r{number}", previous, [message])
        previous = f"r{number}"
    assert len(histories.messages("r49")) == 50
    assert 50_000 < histories.size_bytes < 60_000
    assert "r50" not in histories
