"""An agent's conversations with the model: messages on the one side, the very tokens that were made on the other.

An agent sends all messages each time. What it sends is rendered by the chat template once; a call that goes on from an
answer adds the new messages' tokens to those of the sequence, which are never tokenised anew: the model is trained on
exactly what it has seen and made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from areal_api.generation import GenerationHyperparameters
from areal_trainer.rollout.trajectory_builder import Recording
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
    """One growing sequence of tokens, with the messages that it stands for."""

    recording: Recording
    rendered: str  # the text up to and with the last answer
    messages: list[Message] = field(default_factory=list)  # as the agent sent them, up to the last answer
    turns: list[Turn] = field(default_factory=list)
    at: list[int] = field(default_factory=list)  # the place of each turn among the messages
    said: list[str] = field(default_factory=list)  # the answers, as they stood in the conversation


class Conversation:
    """All calls of the model in one episode of one agent, or of several.

    A call whose messages go on from an earlier answer continues that answer's sequence; every other call (another
    agent's, or one after an agent has shortened its history) begins a sequence of its own, which is a trajectory too.
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
        self._template = chat_template_kwargs or {}
        self._sequences: list[_Sequence] = []
        self._last: _Sequence | None = None

    @property
    def last(self) -> Turn | None:
        """The answer that came last."""
        return self._last.turns[-1] if self._last else None

    async def reply(self, messages: Sequence[Message], *, tools: Tools | None = None) -> Turn:
        """The model's answer. Raises ``ConversationFullError`` where there is no room for one.

        ``messages`` are roles and contents as of OpenAI, ``tools`` what the chat template describes to the model. In
        later calls an answer stands as the agent tells it: a part of the text, as where calls of tools were cut out.
        """
        told = [_plain(message) for message in messages]
        sequence, input_ids, rendered = self._prompt(told, tools)
        if len(input_ids) >= self._gconfig.max_tokens:
            raise ConversationFullError(
                f"a conversation has {len(input_ids)} tokens, gconfig.max_tokens is {self._gconfig.max_tokens}"
            )
        began = len(sequence.turns) if sequence else 0
        response = await self._engine.agenerate(ModelRequest(input_ids=input_ids, gconfig=self._gconfig))
        if sequence is None or len(sequence.turns) > began:  # a parallel call has gone on from the same answer first
            before = sequence
            sequence = _Sequence(Recording(input_ids), rendered)
            if before is not None:
                sequence.at, sequence.said = before.at[:began], before.said[:began]
            self._sequences.append(sequence)
        else:
            sequence.recording.given(input_ids[len(sequence.recording.input_ids) :])
        sequence.recording.made(response)
        turn = Turn(self._text(response), response)
        sequence.messages, sequence.rendered = told, rendered
        sequence.turns.append(turn)
        sequence.at.append(len(told))
        sequence.said.append(turn.text)
        self._last = sequence
        return turn

    def trajectories(self, *, reward: float, prompt: str = "", task_id: str = "") -> list[Trajectory]:
        """One a sequence, each with the episode's ``reward``; the completion is the sequence's last answer."""
        return [
            sequence.recording.trajectory(
                reward=reward, prompt=prompt, completion=sequence.turns[-1].text, task_id=task_id
            )
            for sequence in self._sequences
        ]

    def _prompt(self, told: list[Message], tools: Tools | None) -> tuple[_Sequence | None, list[int], str]:
        """The sequence that the messages go on from, the tokens to ask the model with, and their text."""
        for sequence in sorted(self._sequences, key=lambda known: -len(known.messages)):
            if not _goes_on(sequence, told):
                continue
            rendered = self._render(_with_answers(told, sequence), tools)
            added = _after(rendered, sequence)
            if added is not None:
                return sequence, sequence.recording.input_ids + self._added_ids(added, sequence), rendered
        rendered = self._render(told, tools)
        return None, self._tokenizer.encode(rendered, add_special_tokens=False), rendered

    def _added_ids(self, added: str, sequence: _Sequence) -> list[int]:
        """Tokens of what stands after an answer, less the stop token where the answer has it already."""
        ids: list[int] = self._tokenizer.encode(added, add_special_tokens=False)
        response = sequence.turns[-1].response
        if response.stop_reason == "stop" and ids[:1] == response.output_tokens[-1:]:
            return ids[1:]
        return ids

    def _render(self, messages: list[Message], tools: Tools | None) -> str:
        # The template has put the special tokens in already.
        text: str = self._tokenizer.apply_chat_template(
            messages, tools=tools or None, tokenize=False, add_generation_prompt=True, **self._template
        )
        return text

    def _text(self, response: ModelResponse) -> str:
        tokens = response.output_tokens
        if response.stop_reason == "stop" and tokens[-1:] and tokens[-1] in self._gconfig.stop_token_ids:
            tokens = tokens[:-1]
        # What is special to the tokenizer may be a call of a tool to the agent.
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False)
        return text


def _plain(message: Message) -> Message:
    """The message with what chat templates know, its content as text."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    plain: Message = {"role": message["role"], "content": content or ""}
    return plain | {key: message[key] for key in ("name", "tool_calls", "tool_call_id") if message.get(key)}


def _goes_on(sequence: _Sequence, told: list[Message]) -> bool:
    """Whether ``told`` is what the sequence stands for, its last answer, and more."""
    known = len(sequence.messages)
    if len(told) <= known + 1 or told[:known] != sequence.messages:
        return False
    answer = told[known]
    return answer["role"] == "assistant" and answer["content"].strip() in sequence.turns[-1].text


def _with_answers(told: list[Message], sequence: _Sequence) -> list[Message]:
    """``told`` with the model's own words in the place of what the agent made of them."""
    messages = list(told)
    for place, said in zip(sequence.at, sequence.said, strict=True):
        messages[place] = {"role": "assistant", "content": said}
    return messages


def _after(rendered: str, sequence: _Sequence) -> str | None:
    """What ``rendered`` adds to the sequence's text and last answer; None where it is not the beginning.

    Templates may trim an answer, or put blanks around it; some drop what the model has thought in earlier turns.
    """
    if not rendered.startswith(sequence.rendered):
        return None
    rest, said = rendered[len(sequence.rendered) :], sequence.turns[-1].text.strip()
    start = len(rest) - len(rest.lstrip()) if said else 0
    return rest[start + len(said) :] if rest.startswith(said, start) else None


__all__ = ["Conversation", "ConversationFullError", "Turn"]
