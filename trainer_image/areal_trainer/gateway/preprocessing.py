"""Changes to messages before the chat template sees them: the classes of ``rollout.agent.message_preprocessors``.

A command-line agent writes text into its messages that differs from call to call, such as the date or a header about
billing. A history with such text continues no earlier answer, so every call would start a new conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from areal_trainer.gateway.errors import GatewayError
from areal_trainer.gateway.messages import Message, normalize
from areal_trainer.import_path import load_object

FIELD = "rollout.agent.message_preprocessors"


class Preprocessing:
    """Applies the classes in their order, to requests of Anthropic's protocol only, as AReaL does."""

    def __init__(self, paths: Sequence[str]) -> None:
        """``paths``: import paths of classes. Raises ``ValueError`` for one that cannot be used."""
        self._steps = [(path, _instance(path)) for path in paths]

    def __call__(self, messages: list[Message]) -> list[Message]:
        """The changed messages. Raises ``GatewayError`` with status 500 for a class that fails."""
        if not self._steps:
            return messages
        changed: Any = [_openai_form(message) for message in messages]
        for path, step in self._steps:
            try:
                changed = step(changed)
                if not isinstance(changed, list) or not changed:
                    raise ValueError(f"it returned {changed!r:.80}, not a list of messages")
                for number, message in enumerate(changed):
                    normalize(message, field=f"messages[{number}]")
            except Exception as error:  # user code may raise anything
                raise GatewayError(500, f"{path} of {FIELD} failed: {type(error).__name__}: {error}") from error
        return [normalize(message, field=f"messages[{number}]") for number, message in enumerate(changed)]

    def answer(self, message: Message) -> Message:
        """An answer as it will stand in the changed histories of later calls."""
        changed = self([message])
        return changed[0] if len(changed) == 1 else message


def _instance(path: str) -> Callable[[list[dict[str, Any]]], Any]:
    loaded = load_object(path, field=FIELD)
    try:
        step = loaded()
    except TypeError as error:
        raise ValueError(f"{FIELD} has {path!r}, which cannot be called without arguments: {error}") from error
    if not callable(step):
        raise ValueError(f"{FIELD} has {path!r}, whose instances have no __call__(self, messages)")
    instance: Callable[[list[dict[str, Any]]], Any] = step
    return instance


def _openai_form(message: Message) -> dict[str, Any]:
    """A copy with the arguments of tool calls as JSON text, as OpenAI's clients send them."""
    calls = [
        call | {"function": call["function"] | {"arguments": _text(call["function"]["arguments"])}}
        for call in message.get("tool_calls", ())
    ]
    return message | ({"tool_calls": calls} if calls else {})


def _text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
