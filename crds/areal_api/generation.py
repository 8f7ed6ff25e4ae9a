"""Sampling parameters of a rollout."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from areal_api.section import Section

WHOLE_VOCABULARY = 100_000_000  # top_k of AReaL and SGLang without a limit


class GenerationHyperparameters(Section):
    """How completions are sampled."""

    n_samples: int = Field(1, ge=1, description="Completions per prompt: the GRPO group size.")
    max_new_tokens: int = Field(
        16384, ge=1, description="Maximum tokens per completion.", json_schema_extra={"unit": "tokens"}
    )
    min_new_tokens: int = Field(
        0,
        ge=0,
        description="Minimum tokens before a completion may stop.",
        json_schema_extra={"unit": "tokens"},
    )
    max_tokens: int = Field(
        32768,
        ge=2,
        description="Maximum tokens of prompt and completion.",
        json_schema_extra={"unit": "tokens"},
    )
    greedy: bool = Field(False, description="Choose the most probable token instead of sampling.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling: probability mass to keep.")
    top_k: int = Field(WHOLE_VOCABULARY, ge=1, description="Sample from this many of the most probable tokens.")
    temperature: float = Field(1.0, ge=0, description="Sampling temperature; 0 is greedy.")
    stop: list[str] | None = Field(None, description="Stop strings.")
    stop_token_ids: list[int] = Field(
        default_factory=list,
        description="Stop token ids, in addition to the tokenizer's end-of-text and padding ids.",
    )
    ignore_eos: bool = Field(False, description="Do not stop at the end-of-text token.")
    skip_special_tokens: bool = Field(True, description="Remove special tokens from the decoded completion.")
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="Penalty on tokens in proportion to how often they were already generated."
    )

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens}, above max_new_tokens {self.max_new_tokens}; "
                "lower min_new_tokens"
            )
        return self

    def untrainable(self) -> list[str]:
        """The settings with which samples cannot be trained on, each with its value and fix.

        With each of them, tokens are drawn from another distribution than softmax(logits / temperature), whose
        log-probs servers and trainer compute. The importance ratios would then be wrong without a visible error.
        Evaluation may use them all. Settings that only end a completion change no distribution.
        """
        changed = {
            "min_new_tokens": (self.min_new_tokens, 0),
            "greedy": (self.greedy, False),
            "temperature": (self.temperature, None) if self.temperature == 0 else (None, None),
            "top_p": (self.top_p, 1.0),
            "top_k": (min(self.top_k, WHOLE_VOCABULARY), WHOLE_VOCABULARY),
            "frequency_penalty": (self.frequency_penalty, 0.0),
        }
        return [
            f"{name} is {str(value).lower()}, which samples from another distribution than the trainer's log-probs; "
            + (f"set it to {str(neutral).lower()}" if neutral is not None else "set it above 0")
            + " (eval_gconfig may differ)"
            for name, (value, neutral) in changed.items()
            if value != neutral
        ]

    def new(self, **changes: Any) -> GenerationHyperparameters:
        """A validated copy with ``changes`` applied."""
        return GenerationHyperparameters(**{**self.model_dump(), **changes})
