"""Random models and batches of given sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from areal_trainer.trajectory import Trajectory


def save_qwen3(directory: Path, *, layers: int, hidden: int, vocabulary: int, seed: int = 0) -> int:
    """Write a randomly initialised Qwen3 with tied embeddings and a tokenizer; returns its number of parameters."""
    torch.manual_seed(seed)
    heads = max(2, hidden // 64)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // 2,
            head_dim=hidden // heads,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )
    )
    model.save_pretrained(directory)
    word_tokenizer(vocabulary).save_pretrained(directory)
    return sum(parameter.numel() for parameter in model.parameters())


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One token per word: w0, w1, …"""
    words = {f"w{number}": number for number in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", eos_token="w1")


def random_groups(
    *, prompts: int, samples: int, prompt_tokens: int, new_tokens: tuple[int, int], vocabulary: int
) -> list[Trajectory]:
    """Groups of samples with completion lengths in the range ``new_tokens`` and the log-probs of a random model."""
    rng = np.random.default_rng(0)
    trajectories = []
    for group in range(prompts):
        prompt = rng.integers(2, vocabulary, prompt_tokens).tolist()
        for _ in range(samples):
            completion = rng.integers(2, vocabulary, rng.integers(new_tokens[0], new_tokens[1] + 1)).tolist()
            trajectories.append(_trajectory(prompt, completion, -float(np.log(vocabulary)), group))
    return trajectories


def _trajectory(prompt: list[int], completion: list[int], logprob: float, group: int) -> Trajectory:
    mask = [False] * len(prompt) + [True] * len(completion)
    return Trajectory.of_lists(
        input_ids=prompt + completion,
        loss_mask=mask,
        logprobs=[logprob * generated for generated in mask],
        versions=[generated - 1 for generated in mask],
        reward=float(sum(completion) % 2),
        prompt_len=len(prompt),
        finish_reason="stop",
        group=group,
    )
