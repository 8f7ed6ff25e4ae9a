"""Framing of messages between the trainer and reward processes."""

from __future__ import annotations

import io

from areal_trainer.reward.messages import CallResult, frame, receive


def test_messages_are_read_in_order_until_the_end() -> None:
    inbox = io.BytesIO(frame(CallResult(1, 0.5)) + frame([(2, {"answer": "x"})]))
    assert receive(inbox) == CallResult(1, 0.5)
    assert receive(inbox) == [(2, {"answer": "x"})]
    assert receive(inbox) is None


def test_truncated_header_is_the_end() -> None:
    assert receive(io.BytesIO(b"\0\0")) is None
