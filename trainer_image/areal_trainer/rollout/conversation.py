"""Conversations for agents: the agent sees messages, training sees exactly the tokens the model read and generated.

An agent sends all messages with every call. When a call continues an earlier answer, only the new messages are
tokenized and appended to that answer's sequence. Tokens that the model generated are never tokenized again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from areal_api.generation import GenerationHyperparameters
from areal_trainer.data.tokenizer import render_prompt
from areal_trainer.rollout.trajectory_builder import TrajectoryBuilder
from areal_trainer.rollout.workflow import GenerationEngine, with_stop_tokens
from areal_trainer.servers.generation import ModelRequest, ModelResponse
from areal_trainer.trajectory import Trajectory

Message = dict[str, Any]
Tools = list[dict[str, Any]]


class ConversationFullError(Exception):
    """The messages leave no room for an answer in ``gconfig.max_tokens``."""


@dataclass(frozen=True)
class Turn:
    """An answer of the model."""

    text: str  # without the stop token
    response: ModelResponse


@dataclass
class _Sequence:
    """One growing sequence of tokens, and the messages it consists of."""

    builder: TrajectoryBuilder
    rendered: str  # the text up to and including the last answer's prompt
    messages: list[Message] = field(default_factory=list)  # as the agent sent them, before the last answer
    turns: list[Turn] = field(default_factory=list)
    answer_indices: list[int] = field(default_factory=list)  # index of each answer among the messages
    answers: list[str] = field(default_factory=list)  # text of each answer


class Conversation:
    """All model calls of one episode, by one agent or several.

    A call whose messages continue an earlier answer extends that answer's sequence. Every other call (by another agent,
    or after an agent has shortened its history) starts a new sequence, which becomes a separate trajectory.
    """

    def __init__(
        self,
        engine: GenerationEngine,
        gconfig: GenerationHyperparameters,
        tokenizer: Any,
        *,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self._engine = engine
        self._gconfig = with_stop_tokens(gconfig, tokenizer)
        self._tokenizer = tokenizer
        self._template_kwargs = chat_template_kwargs or {}
        self._sequences: list[_Sequence] = []
        self._last: _Sequence | None = None

    @property
    def last(self) -> Turn | None:
        """The most recent answer."""
        return self._last.turns[-1] if self._last else None

    async def reply(self, messages: Sequence[Message], *, tools: Tools | None = None) -> Turn:
        """The model's answer. Raises ``ConversationFullError`` if there is no room for one.

        ``messages`` have OpenAI's roles and contents; the chat template describes ``tools`` to the model. In later
        calls the agent may pass back only part of an answer, for example without its tool calls.
        """
        normalized = [_normalize(message) for message in messages]
        sequence, input_ids, rendered = self._prompt(normalized, tools)
        if len(input_ids) >= self._gconfig.max_tokens:
            raise ConversationFullError(
                f"a conversation has {len(input_ids)} tokens, gconfig.max_tokens is {self._gconfig.max_tokens}"
            )
        turns_before = len(sequence.turns) if sequence else 0
        response = await self._engine.agenerate(ModelRequest(input_ids=input_ids, gconfig=self._gconfig))
        if sequence is None or len(sequence.turns) > turns_before:  # a concurrent call continued the same answer first
            parent = sequence
            sequence = _Sequence(TrajectoryBuilder(input_ids), rendered)
            if parent is not None:
                sequence.answer_indices = parent.answer_indices[:turns_before]
                sequence.answers = parent.answers[:turns_before]
            self._sequences.append(sequence)
        else:
            sequence.builder.add_context(input_ids[len(sequence.builder.input_ids) :])
        sequence.builder.add_response(response)
        turn = Turn(self._text(response), response)
        sequence.messages, sequence.rendered = normalized, rendered
        sequence.turns.append(turn)
        sequence.answer_indices.append(len(normalized))
        sequence.answers.append(turn.text)
        self._last = sequence
        return turn

    def trajectories(self, *, reward: float, prompt: str = "", task_id: str = "") -> list[Trajectory]:
        """One trajectory per sequence, each with the episode's ``reward``; its completion is the last answer."""
        return [
            sequence.builder.build(reward=reward, prompt=prompt, completion=sequence.turns[-1].text, task_id=task_id)
            for sequence in self._sequences
        ]

    def _prompt(self, messages: list[Message], tools: Tools | None) -> tuple[_Sequence | None, list[int], str]:
        """The sequence that the messages continue (if any), the model's input tokens, and their text."""
        for sequence in sorted(self._sequences, key=lambda candidate: -len(candidate.messages)):
            if not _continues(sequence, messages):
                continue
            rendered = self._render(_with_answers(messages, sequence), tools)
            suffix = _suffix(rendered, sequence)
            if suffix is not None:
                return sequence, sequence.builder.input_ids + self._suffix_ids(suffix, sequence), rendered
        rendered = self._render(messages, tools)
        return None, self._tokenizer.encode(rendered, add_special_tokens=False), rendered

    def _suffix_ids(self, suffix: str, sequence: _Sequence) -> list[int]:
        """Tokens of the text after an answer, without the stop token if the answer already ends with it."""
        ids: list[int] = self._tokenizer.encode(suffix, add_special_tokens=False)
        response = sequence.turns[-1].response
        if response.stop_reason == "stop" and ids[:1] == response.output_tokens[-1:]:
            return ids[1:]
        return ids

    def _render(self, messages: list[Message], tools: Tools | None) -> str:
        # The template adds the special tokens.
        return render_prompt(self._tokenizer, messages, tools=tools or None, **self._template_kwargs)

    def _text(self, response: ModelResponse) -> str:
        tokens = response.output_tokens
        if response.stop_reason == "stop" and tokens[-1:] and tokens[-1] in self._gconfig.stop_token_ids:
            tokens = tokens[:-1]
        # Tool calls may be delimited by special tokens, so keep them.
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False)
        return text


def _normalize(message: Message) -> Message:
    """The message with only the keys that chat templates use, and its content as text."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    normalized: Message = {"role": message["role"], "content": content or ""}
    return normalized | {key: message[key] for key in ("name", "tool_calls", "tool_call_id") if message.get(key)}


def _continues(sequence: _Sequence, messages: list[Message]) -> bool:
    """Whether ``messages`` are the sequence's messages, its last answer, and at least one more."""
    length = len(sequence.messages)
    if len(messages) <= length + 1 or messages[:length] != sequence.messages:
        return False
    answer = messages[length]
    return answer["role"] == "assistant" and answer["content"].strip() in sequence.turns[-1].text


def _with_answers(messages: list[Message], sequence: _Sequence) -> list[Message]:
    """``messages`` with the model's original answers in place of the agent's copies."""
    restored = list(messages)
    for index, answer in zip(sequence.answer_indices, sequence.answers, strict=True):
        restored[index] = {"role": "assistant", "content": answer}
    return restored


def _suffix(rendered: str, sequence: _Sequence) -> str | None:
    """The text that ``rendered`` adds after the sequence's last answer; None if it does not start with both.

    Templates may trim an answer or surround it with whitespace; some drop the reasoning of earlier turns.
    """
    if not rendered.startswith(sequence.rendered):
        return None
    rest, answer = rendered[len(sequence.rendered) :], sequence.turns[-1].text.strip()
    start = len(rest) - len(rest.lstrip()) if answer else 0
    return rest[start + len(answer) :] if rest.startswith(answer, start) else None


__all__ = ["Conversation", "ConversationFullError", "Turn"]
