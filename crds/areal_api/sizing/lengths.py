"""Lengths of sequences and microbatches against each other and against what the model was made for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from areal_api.config import GRPOConfig, WorkflowConfig
from areal_api.experiment import ExperimentSpec
from areal_api.sizing.model_shape import ModelShape

LONGER_CONTEXT = "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"  # a variable of SGLang


def longest_sequence(config: GRPOConfig) -> int:
    """Tokens of the longest prompt with its longest completion.

    Without ``train_dataset.max_length`` the prompts are unknown and count as empty: what is too long then is too long
    for certain.
    """
    prompt = config.train_dataset.max_length or 0
    return min(config.gconfig.max_tokens, prompt + config.gconfig.max_new_tokens)


def tokens_per_microbatch(config: GRPOConfig, *, ranks: int) -> int:
    """Most tokens of one forward and backward pass, which the ranks of ``actor.parallel`` share.

    Without ``max_tokens_per_mb`` the whole share of a minibatch is one pass; a sequence is never split.
    """
    longest = longest_sequence(config)
    if config.actor.mb_spec.max_tokens_per_mb is not None:
        return max(config.actor.mb_spec.max_tokens_per_mb, longest)
    shares = ranks // config.actor.parallel.ranks
    sequences = -(-config.train_dataset.batch_size * config.gconfig.n_samples // shares)
    per_minibatch = -(-sequences // config.actor.ppo_n_minibatches)
    return -(-per_minibatch // config.actor.mb_spec.n_mbs) * longest


def microbatch_problems(config: GRPOConfig) -> Iterator[str]:
    """Sequences that a microbatch cannot hold, which would end the run at the first of them."""
    longest, bound = longest_sequence(config), config.actor.mb_spec.max_tokens_per_mb
    if bound is not None and longest > bound:
        yield (
            f"actor.mb_spec.max_tokens_per_mb is {bound}, but a sequence can have {longest} tokens "
            f"({_length_keys(config)}); set config.actor.mb_spec.max_tokens_per_mb={longest} or lower "
            "gconfig.max_new_tokens"
        )


def length_warnings(config: GRPOConfig) -> Iterator[str]:
    """Sequences that may become too long, because nothing but ``gconfig.max_tokens`` limits prompts or turns."""
    bound, most = config.actor.mb_spec.max_tokens_per_mb, config.gconfig.max_tokens
    unlimited = config.train_dataset.max_length is None or config.workflow.path != WorkflowConfig().path
    if bound is not None and longest_sequence(config) <= bound < most and unlimited:
        yield (
            f"a sequence may have up to {most} tokens (gconfig.max_tokens), and one of more than {bound} "
            f"(actor.mb_spec.max_tokens_per_mb) would end the run; set config.gconfig.max_tokens={bound}"
        )


def model_length_problems(spec: ExperimentSpec, shape: ModelShape) -> Iterator[str]:
    """Sequences that the model was not made for. A context_length that is too short is refused by the experiment."""
    config = spec.config
    longest, context = longest_sequence(config), config.sglang.context_length
    if shape.longest_packed is not None and longest > shape.longest_packed:
        yield (
            f"a sequence can have {longest} tokens ({_length_keys(config)}), but beyond {shape.longest_packed} the "
            "rotary embedding of this model depends on the longest sequence of a pass, which ends the run; set "
            f"config.gconfig.max_tokens={shape.longest_packed}"
        )
    if shape.longest is None or all(_allows_longer_context(one.servers.env) for one in spec.servers.groups):
        return
    if context is not None and context > shape.longest:
        yield (
            f"sglang.context_length is {context}, but the model was made for {shape.longest} "
            f"(max_position_embeddings); set it to at most that, or the variable {LONGER_CONTEXT}=1 in servers.env"
        )
    elif context is None and longest > shape.longest:
        yield (
            f"a sequence can have {longest} tokens ({_length_keys(config)}), but the model was made for "
            f"{shape.longest} (max_position_embeddings); set config.gconfig.max_tokens={shape.longest}"
        )


def _allows_longer_context(env: Sequence[Mapping[str, Any]]) -> bool:
    return any(entry.get("name") == LONGER_CONTEXT for entry in env)


def _length_keys(config: GRPOConfig) -> str:
    keys = f"gconfig.max_tokens {config.gconfig.max_tokens}, gconfig.max_new_tokens {config.gconfig.max_new_tokens}"
    prompt = config.train_dataset.max_length
    return keys if prompt is None else f"{keys}, train_dataset.max_length {prompt}"
