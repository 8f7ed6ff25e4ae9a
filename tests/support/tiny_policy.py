"""Tiny models, batches and a plain reference implementation for the tests of the policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from areal_api.actor import PPOActorConfig
from areal_trainer.trajectory import Trajectory

VOCABULARY = 97
KINDS: dict[str, tuple[type, type]] = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
    "glm4_moe": (Glm4MoeConfig, Glm4MoeForCausalLM),
    "mixtral": (MixtralConfig, MixtralForCausalLM),
}
# Sizes of tiny mixtures of experts.
EXPERTS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


def save_tiny_model(directory: Path, kind: str = "qwen3", *, tied: bool = True, **changes: Any) -> Path:
    """Write a randomly initialised model and a tokenizer with one token per word."""
    config_class, model_class = KINDS[kind]
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": tied,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    if kind.startswith("qwen3"):
        settings["head_dim"] = 16
    torch.manual_seed(0)
    model = model_class(config_class(**(settings | changes)))
    model.save_pretrained(directory)
    vocabulary = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w2"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", eos_token="w1", unk_token="w2").save_pretrained(
        directory
    )
    return directory


def actor_config(path: Path, **changes: Any) -> PPOActorConfig:
    """A float32 actor with one optimizer step per update."""
    settings: dict[str, Any] = {
        "path": str(path),
        "dtype": "float32",
        "ppo_n_minibatches": 1,
        "max_logprob_diff": 100.0,
        "optimizer": {"lr": 1e-2, "weight_decay": 0.01},
    }
    return PPOActorConfig(**(settings | changes))


def random_trajectories(
    groups: int = 3, samples: int = 4, *, seed: int = 0, version: int = 0, longest: int = 12
) -> list[Trajectory]:
    """Groups of samples of one prompt; completions of 1 … ``longest`` tokens with random log-probs and rewards."""
    chance = np.random.default_rng(seed)
    result = []
    for group in range(groups):
        prompt = chance.integers(3, VOCABULARY, chance.integers(2, 9))
        for _ in range(samples):
            completion = chance.integers(3, VOCABULARY, chance.integers(1, longest + 1))
            made = [False] * len(prompt) + [True] * len(completion)
            result.append(
                Trajectory.of_lists(
                    input_ids=[*prompt.tolist(), *completion.tolist()],
                    loss_mask=made,
                    logprobs=np.where(made, -chance.exponential(3.0, len(made)), 0.0).tolist(),
                    versions=np.where(made, version, -1).tolist(),
                    reward=float(chance.integers(0, 2)),
                    prompt_len=len(prompt),
                    finish_reason="stop",
                    group=group,
                )
            )
    return result


def with_experts(trajectories: list[Trajectory], *, layers: int = 2, experts: int = 4) -> list[Trajectory]:
    """The samples with two random experts of each layer for all tokens but the last, the same in a group's prompt."""
    result = []
    for trajectory in trajectories:
        parts = []
        for seed, tokens in (
            (trajectory.group, trajectory.prompt_len),
            (100 + int(trajectory.input_ids.sum()), len(trajectory) - trajectory.prompt_len - 1),
        ):
            order = np.tile(np.arange(experts), (tokens, layers, 1))
            parts.append(np.random.default_rng(seed).permuted(order, axis=-1)[:, :, :2])
        chosen = np.concatenate(parts).astype(np.uint8)
        result.append(msgspec.structs.replace(trajectory, experts=chosen))
    return result


def plain_model(path: Path) -> PreTrainedModel:
    """The model as loaded by transformers."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def plain_logprobs(model: PreTrainedModel, trajectory: Trajectory, *, temperature: float = 1.0) -> torch.Tensor:
    """Differentiable log-probs of a single sequence; 0 outside the loss mask."""
    ids = torch.from_numpy(trajectory.input_ids)
    logits = model(input_ids=ids[None]).logits[0, :-1] / temperature
    logprobs = torch.log_softmax(logits, -1).gather(1, ids[1:, None]).squeeze(1)
    return torch.nn.functional.pad(logprobs, (1, 0)) * torch.from_numpy(trajectory.loss_mask)
