"""A request to the model and what comes back: the engine's own types, and SGLang's JSON on the other side."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from areal_api.generation import GenerationHyperparameters

StopReason = Literal["stop", "length"]
_WHOLE_VOCABULARY = 100_000_000  # gconfig.top_k from here on means no top-k; a number makes SGLang sort the vocabulary


@dataclass(frozen=True)
class ModelRequest:
    """One prompt as token ids. ``rid`` names it in errors and on the server; ``metadata`` is the caller's own."""

    input_ids: list[int]
    gconfig: GenerationHyperparameters = field(default_factory=GenerationHyperparameters)
    rid: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


class ModelResponse(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One completion; the three output lists have equal lengths. The stop token is included."""

    input_tokens: list[int]
    output_tokens: list[int]
    output_logprobs: list[float]  # of each output token under the weights that made it, at the sampling temperature
    output_versions: list[int]  # weight version that made each output token
    stop_reason: StopReason
    latency_s: float

    @property
    def input_len(self) -> int:
        """Tokens of the prompt."""
        return len(self.input_tokens)

    @property
    def output_len(self) -> int:
        """Tokens of the completion."""
        return len(self.output_tokens)


class TokenLogprob(msgspec.Struct, array_like=True, gc=False):
    """[logprob, token id, …]; untracked by the garbage collector, of which there are millions."""

    logprob: float
    token: int


class FinishReason(msgspec.Struct):
    """Why an answer ends."""

    type: Literal["stop", "length", "abort"]


class Span(msgspec.Struct):
    """The tokens ``start`` … ``end`` − 1 of an answer were made by ``version``."""

    version: str
    start: int
    end: int


class Meta(msgspec.Struct):
    """What we read of ``meta_info``."""

    finish_reason: FinishReason
    weight_version: str = ""
    weight_versions: list[Span] | None = None
    output_token_logprobs: list[TokenLogprob] | None = None


class Answer(msgspec.Struct):
    """What we read of a sample in SGLang's answer to /generate."""

    meta_info: Meta


ONE_ANSWER = msgspec.json.Decoder(Answer)
ANSWERS = msgspec.json.Decoder(list[Answer])


class WrongVersionError(Exception):
    """A server answered with weights that it is not known to hold."""


class Draft(msgspec.Struct, gc=False):
    """A completion in the making: what answers, of which some were interrupted, have brought so far."""

    tokens: list[int]
    logprobs: list[float]
    versions: list[int]
    stop_reason: StopReason | None

    @classmethod
    def of_answer(cls, answer: Answer, *, oldest: int, newest: int, limit: int) -> Draft:
        """What a server made. Raises ``WrongVersionError`` where a token was made by weights outside ``oldest`` …
        ``newest``. ``limit``: tokens that were asked for."""
        meta = answer.meta_info
        made = meta.output_token_logprobs or []
        reason = meta.finish_reason.type
        return cls(
            tokens=[entry.token for entry in made],
            logprobs=[entry.logprob for entry in made],
            versions=_versions(meta, len(made), oldest=oldest, newest=newest),
            stop_reason=reason if reason != "abort" else "length" if len(made) >= limit else None,
        )

    def append(self, part: Draft) -> None:
        """Append the continuation ``part``."""
        self.tokens += part.tokens
        self.logprobs += part.logprobs
        self.versions += part.versions
        self.stop_reason = part.stop_reason

    def response(self, input_tokens: list[int], latency_s: float) -> ModelResponse:
        """The finished completion."""
        assert self.stop_reason is not None, "the completion is not finished"
        return ModelResponse(input_tokens, self.tokens, self.logprobs, self.versions, self.stop_reason, latency_s)


@functools.lru_cache(maxsize=64)
def weight_version_number(name: str) -> int | None:
    """12 for "v12"; None for anything else, such as SGLang's "default"."""
    return int(name[1:]) if name[:1] == "v" and name[1:].isdigit() else None


def sampling_params(gconfig: GenerationHyperparameters, *, n: int, made: int, prompt_len: int) -> dict[str, Any]:
    """SGLang's sampling parameters for the rest of a completion of which ``made`` tokens are there.

    Raises ``ValueError`` where the prompt leaves no room in ``max_tokens``.
    """
    room = gconfig.max_tokens - prompt_len
    if room < 1:
        raise ValueError(
            f"a prompt has {prompt_len} tokens, gconfig.max_tokens (prompt and completion) is {gconfig.max_tokens}; "
            "raise it or set train_dataset.max_length"
        )
    greedy = gconfig.greedy or gconfig.temperature == 0
    params: dict[str, Any] = {
        "max_new_tokens": min(gconfig.max_new_tokens, room) - made,
        "temperature": 0.0 if greedy else gconfig.temperature,
    }
    optional: dict[str, tuple[Any, bool]] = {
        "n": (n, n > 1),
        "min_new_tokens": (gconfig.min_new_tokens - made, gconfig.min_new_tokens > made),
        "top_p": (gconfig.top_p, gconfig.top_p < 1 and not greedy),
        "top_k": (gconfig.top_k, gconfig.top_k < _WHOLE_VOCABULARY and not greedy),
        "stop": (gconfig.stop, bool(gconfig.stop)),
        "stop_token_ids": (gconfig.stop_token_ids, bool(gconfig.stop_token_ids)),
        "ignore_eos": (True, gconfig.ignore_eos),
        "frequency_penalty": (gconfig.frequency_penalty, gconfig.frequency_penalty != 0),
    }
    return params | {name: value for name, (value, wanted) in optional.items() if wanted}


def check_token_ids(input_ids: list[int], vocab_size: int | None) -> None:
    """Raise ``ValueError`` for ids that the model does not have: SGLang dies of them."""
    if not input_ids:
        raise ValueError("a request has no tokens; the prompt is empty")
    low, high = min(input_ids), max(input_ids)
    if low < 0 or (vocab_size is not None and high >= vocab_size):
        wrong = low if low < 0 else high
        raise ValueError(
            f"token id {wrong} is outside the model's vocabulary of {vocab_size} tokens; "
            "tokenizer_path and actor.path belong to different models"
        )


def _versions(meta: Meta, count: int, *, oldest: int, newest: int) -> list[int]:
    spans = meta.weight_versions or [Span(meta.weight_version, 0, count)]
    versions: list[int] = []
    for span in spans:
        version = weight_version_number(span.version)
        if version is None or not oldest <= version <= newest:
            raise WrongVersionError(
                f"it says {span.version!r}, not v{oldest}{'' if oldest == newest else f' … v{newest}'}"
            )
        versions += [version] * (span.end - span.start)
    if len(versions) != count:
        raise ValueError(f"an answer has {count} log-probs, but weight_versions cover {len(versions)} tokens")
    return versions
