"""Trainer tokens/s beside a bare forward and backward pass of the same batch: `python benchmarks/trainer.py`.

The task of the figures: a Qwen3 of 0.8 M parameters, 32 prompts × 8 samples, at most 20 new tokens. In one run:
- update: all that `Policy.update` does, packing to optimizer step and statistics
- same passes, bare: only forward and backward of the very passes that update makes, then the optimizer step
- plain, padded: transformers' own model on a padded rectangle, log-softmax of all logits, backward, optimizer step
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from areal_api.actor import PPOActorConfig
from areal_trainer.batch import PackedBatch, pack
from areal_trainer.passes import microbatches, minibatches
from areal_trainer.policy import Policy
from areal_trainer.trajectory import Trajectory

VOCABULARY = 256


def make_model(directory: Path) -> None:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)


def make_batch(prompts: int, samples: int, longest: int) -> PackedBatch:
    chance = np.random.default_rng(0)
    trajectories = []
    for group in range(prompts):
        prompt = chance.integers(0, VOCABULARY, chance.integers(18, 33))
        for _ in range(samples):
            completion = chance.integers(0, VOCABULARY, min(longest, 3 + int(chance.geometric(0.09))))
            made = np.arange(len(prompt) + len(completion)) >= len(prompt)
            trajectories.append(
                Trajectory(
                    input_ids=np.concatenate([prompt, completion]),
                    loss_mask=made,
                    logprobs=np.where(made, -5.5, 0).astype(np.float32),
                    versions=np.where(made, 0, -1).astype(np.int32),
                    reward=float(chance.integers(0, 2)),
                    prompt_len=len(prompt),
                    finish_reason="stop",
                    group=group,
                )
            )
    return pack(trajectories)


def bare_passes(policy: Policy, batch: PackedBatch) -> Callable[[], None]:
    (units,) = minibatches(batch, 1, cost=policy.model.cost)
    layouts = microbatches(batch, units, policy.config.mb_spec, field="actor.mb_spec")
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        for layout in layouts:
            policy.model(layout)[0].mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain_padded(path: Path, batch: PackedBatch) -> Callable[[], None]:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    ids = torch.zeros(len(batch), max(batch.lengths), dtype=torch.int64)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, trajectory in enumerate(batch.trajectories):
        ids[row, : len(trajectory)] = torch.from_numpy(trajectory.input_ids)
        mask[row, : len(trajectory)] = torch.from_numpy(trajectory.loss_mask)

    def step() -> None:
        # Padding comes after the sequence, so causal attention hides it without a mask.
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        logprobs = torch.log_softmax(logits, -1).gather(2, ids[:, 1:, None]).squeeze(2)
        logprobs[mask[:, 1:]].mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(steps: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The quickest of the repeats, the loops taking turns so that a busy machine is busy for all."""
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(repeats):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    batch = make_batch(prompts=32, samples=8, longest=20)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        make_model(path)
        config = PPOActorConfig(
            path=str(path), dtype="float32", ppo_n_minibatches=1, use_decoupled_loss=True, max_logprob_diff=100.0
        )
        policy = Policy(config, device="cpu", total_steps=1000, seed=0)
        prox_logp_T, advantages_T = policy.logprobs(batch), torch.randn(len(batch.input_ids_T)) * batch.loss_mask_T
        steps = {
            "logprobs": lambda: policy.logprobs(batch),
            "update": lambda: policy.update(batch, advantages_T=advantages_T, prox_logp_T=prox_logp_T),
            "same passes, bare": bare_passes(policy, batch),
            "plain, padded": plain_padded(path, batch),
        }
        found = seconds(steps, arguments.repeats)
    tokens = sum(batch.lengths)
    for name, took in found.items():
        print(f"{name:20} {took:7.3f} s {tokens / took:9.0f} tokens/s")
    ratios = {name: found[name] / found["update"] for name in ("same passes, bare", "plain, padded")}
    print(json.dumps({"tokens": tokens, "seconds": found, "update_beside": ratios}))


if __name__ == "__main__":
    main()
