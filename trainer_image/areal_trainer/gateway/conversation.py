"""The model calls of one session as a tree: what the agent sees is messages, what is trained is tokens.

An agent sends its whole history with every call. Where the history continues an answer that the model gave in this
session, the prompt is that answer's own prompt and tokens, followed by the tokens of the new messages only. A history
that was edited or shortened continues the last answer before the change, or starts a new conversation. Two calls that
continue the same answer are two branches. So text is never tokenized twice, and every trained token is one that a
server generated after exactly the tokens before it.
"""

from __future__ import annotations

import hashlib
import itertools
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from areal_trainer.gateway.channel import Sample
from areal_trainer.gateway.messages import Message, canonical, canonical_tools
from areal_trainer.routing import EncodedExperts, recorded_until

# Stands for an answer while a template renders what follows it.
_MARK = f"answer-{uuid.uuid4().hex}"

_TOKEN_BYTES = 100  # a token, its log-prob and its version as Python objects in lists

Render = Callable[[list[Message], list[dict[str, Any]]], str]
Encode = Callable[[str], list[int]]


@dataclass(eq=False)
class Interaction:
    """One completion and its place in the tree."""

    id: str
    call: int  # number of the call; its choices share it
    parent: Interaction | None  # the answer that its prompt continues
    new_ids: list[int]  # of the prompt, after those of the parent
    prompt_len: int
    sample: Sample
    prompt: str  # text of the new messages
    text: str
    trained: bool  # False: its log-probs are not those of the policy
    reward: float | None = None  # as it was set
    value: float = 0.0  # the reward with the discounted rewards of later completions

    @property
    def end(self) -> int:
        """Number of tokens up to the end of the completion."""
        return self.prompt_len + len(self.sample.tokens)

    @property
    def input_ids(self) -> list[int]:
        """All tokens up to the end of the completion."""
        return [token for one in _path(self) for ids in (one.new_ids, one.sample.tokens) for token in ids]


@dataclass(frozen=True)
class Prompt:
    """The tokens for a call, and what is needed to record its answers."""

    parent: Interaction | None
    input_ids: list[int]
    new_ids: list[int]  # after those of the parent
    text: str
    digest: Any  # hash of the tools and all messages


@dataclass
class Export:
    """A sample to train on; the lists have equal lengths. See ``areal_trainer.trajectory.Trajectory``."""

    interaction_id: str  # of its last completion
    input_ids: list[int]
    loss_mask: list[bool]
    logprobs: list[float]
    versions: list[int]
    reward: float
    prompt_len: int
    finish_reason: str
    prompt: str
    completion: str
    experts: EncodedExperts | None = None  # with actor.router_replay


@dataclass
class ConversationTree:
    """All completions of a session. ``render`` is the chat template, ``encode`` adds no special tokens."""

    render: Render
    encode: Encode
    interactions: list[Interaction] = field(default_factory=list)  # in order of creation
    _by_id: dict[str, list[Interaction]] = field(default_factory=dict)
    _by_history: dict[bytes, Interaction] = field(default_factory=dict)
    _calls: int = 0
    size_bytes: int = 0  # roughly, of what is held

    # Prompts

    def prompt(self, messages: list[Message], tools: list[dict[str, Any]]) -> Prompt:
        """The tokens for normalized ``messages``. Raises ``ValueError`` if the template rejects them."""
        digest = hashlib.blake2b(canonical_tools(tools), digest_size=16)
        found: list[tuple[int, Interaction]] = []
        for position, message in enumerate(messages):
            digest.update(canonical(message))
            if message["role"] == "assistant" and (interaction := self._by_history.get(digest.digest())):
                found.append((position, interaction))
        for position, interaction in reversed(found):
            if (suffix := self._suffix(messages, position, tools)) is not None:
                new_ids = self._suffix_ids(suffix, interaction)
                return Prompt(interaction, interaction.input_ids + new_ids, new_ids, suffix, digest)
        text = self.render(messages, tools)
        input_ids = self.encode(text)
        return Prompt(None, input_ids, input_ids, text, digest)

    def _suffix(self, messages: list[Message], position: int, tools: list[dict[str, Any]]) -> str | None:
        """The text that the template writes after the answer at ``position``; None if it cannot be told."""
        marked = [*messages[:position], {"role": "assistant", "content": _MARK}, *messages[position + 1 :]]
        try:
            rendered = self.render(marked, tools)
        except ValueError:  # for example a template that wants tool calls before a tool's result
            return None
        _, mark, after = rendered.partition(_MARK)
        return after if mark and _MARK not in after else None

    def _suffix_ids(self, suffix: str, interaction: Interaction) -> list[int]:
        """Tokens of the text after an answer, without the stop token if the answer already ends with it."""
        ids = self.encode(suffix)
        sample = interaction.sample
        return ids[1:] if sample.stop_reason == "stop" and ids[:1] == sample.tokens[-1:] else ids

    # Answers

    def add(
        self,
        prompt: Prompt,
        completion_id: str,
        samples: Iterable[tuple[Sample, str, Message]],
        *,
        trained: bool = True,
    ) -> None:
        """Record the answers to a call: of each, the sample, its text, and the message as the agent receives it.

        Answer 0 has ``completion_id`` as its ID, answer k ``<completion_id>-k``. Answers that are not ``trained`` are
        only the context of later ones.
        """
        answers = []
        for index, (sample, text, message) in enumerate(samples):
            interaction = Interaction(
                f"{completion_id}-{index}" if index else completion_id,
                self._calls,
                prompt.parent,
                prompt.new_ids,
                len(prompt.input_ids),
                sample,
                prompt.text,
                text,
                trained,
            )
            history = prompt.digest.copy()
            history.update(canonical(message))
            self._by_history[history.digest()] = interaction
            self._by_id[interaction.id] = [interaction]
            answers.append(interaction)
            self.size_bytes += _TOKEN_BYTES * (len(prompt.new_ids) + len(sample.tokens)) + len(prompt.text) + len(text)
            self.size_bytes += len(sample.experts.data) if sample.experts is not None else 0
        self._by_id[completion_id] = answers
        self.interactions += answers
        self._calls += 1

    # Rewards

    def set_reward(self, interaction_id: str | None, reward: float) -> None:
        """Set the reward of a completion, by default the last one. Raises ``KeyError`` for an unknown ID.

        The ID of a response with several choices sets the reward of all of them.
        """
        if interaction_id is None:
            if not self.interactions:
                raise KeyError("the last completion")
            self.interactions[-1].reward = reward
            return
        for interaction in self._by_id[interaction_id]:
            interaction.reward = reward

    # Samples

    def export(self, *, turn_discount: float, style: str) -> list[Export]:
        """The samples of the session: one per completion (``individual``) or per leaf of the tree (``concat``).

        A completion's value is its reward plus ``turn_discount`` times the value of the next call's completion (the
        mean over its choices), in the order in which calls ended. ``individual`` trains each completion with its value.
        ``concat`` trains a whole branch with the value of its last completion plus the rewards set on earlier ones;
        completions that several branches share are trained once. Sequences without a trained completion are left out.
        """
        later = 0.0
        for _, group in itertools.groupby(reversed(self.interactions), key=lambda one: one.call):
            choices = list(group)
            for interaction in choices:
                interaction.value = (interaction.reward or 0.0) + turn_discount * later
            later = sum(interaction.value for interaction in choices) / len(choices)
        if style == "individual":
            return [_export([one], {one}, one.value) for one in self.interactions if one.trained]
        inner = {one.parent for one in self.interactions}
        trained: set[Interaction] = set()
        exports = []
        for leaf in self.interactions:
            if leaf in inner:
                continue
            path = _path(leaf)
            reward = leaf.value + sum(one.reward or 0.0 for one in path[:-1])
            new = {one for one in path if one.trained} - trained
            if new:
                exports.append(_export(path, new, reward))
            trained.update(path)
        return exports


def _path(leaf: Interaction) -> list[Interaction]:
    """The completions from the root to ``leaf``."""
    path = [leaf]
    while (parent := path[-1].parent) is not None:
        path.append(parent)
    return path[::-1]


def _export(path: list[Interaction], trained: set[Interaction], reward: float) -> Export:
    """The sequence that ends with the last completion of ``path``, in which those in ``trained`` are trained."""
    last = path[-1]
    loss_mask = [False] * last.end
    logprobs = [0.0] * last.end
    versions = [-1] * last.end
    for interaction in path:
        if interaction in trained:
            start, end = interaction.prompt_len, interaction.end
            loss_mask[start:end] = [True] * (end - start)
            logprobs[start:end] = interaction.sample.logprobs
            versions[start:end] = interaction.sample.versions
    return Export(
        interaction_id=last.id,
        input_ids=last.input_ids,
        loss_mask=loss_mask,
        logprobs=logprobs,
        versions=versions,
        reward=reward,
        prompt_len=path[0].prompt_len,
        finish_reason=last.sample.stop_reason,
        prompt=path[0].prompt,
        completion=last.text,
        experts=_experts(path),
    )


def _experts(path: list[Interaction]) -> EncodedExperts | None:
    found = [(one.end, one.sample.experts) for one in path]
    return EncodedExperts.of(recorded_until([(end, None if one is None else one.decoded()) for end, one in found]))
