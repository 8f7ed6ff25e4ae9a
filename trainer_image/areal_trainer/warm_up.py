"""What would make the first step slower than later ones, done before it: memory, kernels, the servers' first requests.

Nothing of it stays: weights, optimizer, schedule, random numbers and counters are as before.
"""

from __future__ import annotations

import numpy as np

from areal_api.config import GRPOConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.batch import PackedBatch, pack
from areal_trainer.components import Parts
from areal_trainer.trajectory import Trajectory

PROMPT_TOKENS = 32
MOST_NEW_TOKENS = 256  # of an answer that is trained
MOST_TOKENS = 16384  # of the batch, where actor.mb_spec does not bound what goes through the model together
SERVER_PROMPTS = 8  # a server
SERVER_PROMPT_TOKENS = 16
SERVER_NEW_TOKENS = 3
TOKEN_IDS = (3, 256)  # ordinary ones in any vocabulary


def warm_up_policy(parts: Parts) -> None:
    """Collective. For the time in which the servers start."""
    model = parts.policy.model.causal_lm.config.get_text_config()
    longest = getattr(model, "max_position_embeddings", None) or MOST_TOKENS
    batch = random_batch(parts.config, vocab_size=parts.vocab_size, longest=longest, ranks=parts.ranks.world_size)
    parts.policy.warm_up(batch)
    if parts.reference is not None:
        parts.reference.logprobs(batch)


def warm_up_servers(parts: Parts) -> None:
    """Rank 0. A few tokens from every server, as many samples at a time as in training."""
    count = SERVER_PROMPTS * len(parts.engine.current_servers())
    gconfig = GenerationHyperparameters(
        max_new_tokens=SERVER_NEW_TOKENS, temperature=parts.config.gconfig.temperature, ignore_eos=True
    )
    prompts = random_prompts(count, tokens=SERVER_PROMPT_TOKENS, vocab_size=parts.vocab_size)
    parts.engine.generate_and_forget(prompts, gconfig, n=parts.config.gconfig.n_samples)


def random_batch(config: GRPOConfig, *, vocab_size: int, longest: int, ranks: int) -> PackedBatch:
    """A rank's batch of the configured size, or as much of it as one microbatch holds. Collective."""
    limit = config.actor.mb_spec.max_tokens_per_mb or MOST_TOKENS
    length = max(2, min(limit, longest, PROMPT_TOKENS + min(config.gconfig.max_new_tokens, MOST_NEW_TOKENS)))
    prompts = random_prompts(-(-config.consumer_batch_size // ranks), tokens=length, vocab_size=vocab_size)
    samples = [_sample(ids, group) for group, ids in enumerate(prompts) for _ in range(config.gconfig.n_samples)]
    return pack(samples[: max(1, limit // length)])


def random_prompts(count: int, *, tokens: int, vocab_size: int) -> list[list[int]]:
    """Token ids that the model knows; the same ones each time."""
    low, high = TOKEN_IDS
    ids = np.random.default_rng(0).integers(min(low, vocab_size - 1), min(high, vocab_size), (count, tokens))
    return [[int(token) for token in row] for row in ids]


def _sample(ids: list[int], group: int) -> Trajectory:
    prompt_len = min(PROMPT_TOKENS, len(ids) - 1)
    made = np.arange(len(ids)) >= prompt_len
    return Trajectory(
        input_ids=np.array(ids, dtype=np.int64),
        loss_mask=made,
        logprobs=np.zeros(len(ids), dtype=np.float32),
        versions=np.where(made, 0, -1).astype(np.int32),
        reward=0.0,
        prompt_len=prompt_len,
        finish_reason="length",
        group=group,
    )
