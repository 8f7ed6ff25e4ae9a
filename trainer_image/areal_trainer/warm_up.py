"""Warm-up before the first step: allocates memory, compiles kernels and sends the servers' first requests.

Weights, optimizer, schedule, random numbers and counters stay unchanged.
"""

from __future__ import annotations

import numpy as np

from areal_api.config import GRPOConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.batch import PackedBatch, pack
from areal_trainer.components import Components
from areal_trainer.trajectory import Trajectory

PROMPT_TOKENS = 32
MAX_NEW_TOKENS = 256  # of a completion in the policy's batch
MAX_TOKENS = 16384  # of the batch, if actor.mb_spec does not bound a microbatch
SERVER_PROMPTS = 8  # per server
SERVER_PROMPT_TOKENS = 16
SERVER_NEW_TOKENS = 3
TOKEN_IDS = (3, 256)  # ordinary tokens in any vocabulary


def warm_up_policy(components: Components) -> None:
    """Collective. Run a random batch through the models while the servers start."""
    model = components.policy.model.causal_lm.config.get_text_config()
    longest = getattr(model, "max_position_embeddings", None) or MAX_TOKENS
    ranks = components.ranks.data_size
    batch = random_batch(components.config, vocab_size=components.vocab_size, longest=longest, ranks=ranks)
    components.policy.warm_up(batch)
    if components.reference is not None:
        components.reference.logprobs(batch)


def warm_up_servers(components: Components) -> None:
    """Rank 0. Generate a few tokens on every server, with the run's number of samples per prompt."""
    count = SERVER_PROMPTS * len(components.engine.current_servers())
    gconfig = GenerationHyperparameters(
        max_new_tokens=SERVER_NEW_TOKENS, temperature=components.config.gconfig.temperature, ignore_eos=True
    )
    prompts = random_prompts(count, tokens=SERVER_PROMPT_TOKENS, vocab_size=components.vocab_size)
    components.engine.warm_up(prompts, gconfig, n=components.config.gconfig.n_samples)


def random_batch(config: GRPOConfig, *, vocab_size: int, longest: int, ranks: int) -> PackedBatch:
    """A rank's batch of the configured size, or as much of it as fits in one microbatch. Collective."""
    limit = config.actor.mb_spec.max_tokens_per_mb or MAX_TOKENS
    length = max(2, min(limit, longest, PROMPT_TOKENS + min(config.gconfig.max_new_tokens, MAX_NEW_TOKENS)))
    prompts = random_prompts(-(-config.consumer_batch_size // ranks), tokens=length, vocab_size=vocab_size)
    samples = [_sample(ids, group) for group, ids in enumerate(prompts) for _ in range(config.gconfig.n_samples)]
    return pack(samples[: max(1, limit // length)])


def random_prompts(count: int, *, tokens: int, vocab_size: int) -> list[list[int]]:
    """Prompts of token ids in the vocabulary; deterministic."""
    low, high = TOKEN_IDS
    ids = np.random.default_rng(0).integers(min(low, vocab_size - 1), min(high, vocab_size), (count, tokens))
    return [[int(token) for token in row] for row in ids]


def _sample(ids: list[int], group: int) -> Trajectory:
    prompt_len = min(PROMPT_TOKENS, len(ids) - 1)
    loss_mask = np.arange(len(ids)) >= prompt_len
    return Trajectory(
        input_ids=np.array(ids, dtype=np.int64),
        loss_mask=loss_mask,
        logprobs=np.zeros(len(ids), dtype=np.float32),
        versions=np.where(loss_mask, 0, -1).astype(np.int32),
        reward=0.0,
        prompt_len=prompt_len,
        finish_reason="length",
        group=group,
    )
