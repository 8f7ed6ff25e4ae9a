"""Sampling parameters of a rollout."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from areal_api.section import Section


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
    top_k: int = Field(100_000_000, ge=1, description="Sample from this many of the most probable tokens.")
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

    def new(self, **changes: Any) -> GenerationHyperparameters:
        """A validated copy with ``changes`` applied."""
        return GenerationHyperparameters(**{**self.model_dump(), **changes})
