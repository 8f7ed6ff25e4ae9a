"""Tokens per second of ``Policy.update``, compared with the plain transformers model on the same batch."""

# B sequences, S positions of a padded batch, T tokens of the batch, N trained tokens

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from areal_api.actor import OptimizerConfig, PPOActorConfig
from areal_trainer.batch import PackedBatch, pack
from areal_trainer.model import attention
from areal_trainer.model.attention import SegmentIndex
from areal_trainer.model.layout import group_by_prompt, lay_out
from areal_trainer.model.policy import Policy
from benchmarks.measure import Comparison, by_turns, rate
from benchmarks.models import random_groups, save_qwen3


@dataclass(frozen=True)
class Size:
    """A model, and a batch of prompts with 8 samples each."""

    layers: int
    hidden: int
    vocabulary: int
    prompts: int
    prompt_tokens: int
    new_tokens: tuple[int, int]


SIZES = (
    Size(layers=4, hidden=128, vocabulary=256, prompts=32, prompt_tokens=24, new_tokens=(10, 20)),
    Size(layers=6, hidden=512, vocabulary=4096, prompts=2, prompt_tokens=96, new_tokens=(32, 160)),
)
SMALL = (Size(layers=1, hidden=64, vocabulary=64, prompts=2, prompt_tokens=4, new_tokens=(2, 6)),)
SAMPLES = 8
OPTIMIZER = OptimizerConfig(lr=1e-6, weight_decay=0.01, beta2=0.99)


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """Two sizes (the tiny task's and a larger one), each with two baselines."""
    disable_progress_bar()
    return [comparison for size in (SMALL if small else SIZES) for comparison in _compare(size, rounds)]


def _compare(size: Size, rounds: int) -> list[Comparison]:
    batch = pack(
        random_groups(
            prompts=size.prompts,
            samples=SAMPLES,
            prompt_tokens=size.prompt_tokens,
            new_tokens=size.new_tokens,
            vocabulary=size.vocabulary,
        )
    )
    advantages_T = torch.where(batch.loss_mask_T, torch.randn(len(batch.input_ids_T)), 0.0)
    with tempfile.TemporaryDirectory() as folder:
        parameters = save_qwen3(Path(folder), layers=size.layers, hidden=size.hidden, vocabulary=size.vocabulary)
        config = PPOActorConfig(
            path=folder,
            dtype="float32",
            ppo_n_minibatches=1,
            use_decoupled_loss=True,
            max_logprob_diff=100.0,
            optimizer=OPTIMIZER,
        )
        policy = Policy(config, device="cpu", total_steps=1000, seed=0)
        same = _SameLayout(folder, policy, batch, advantages_T)
        padded = _Padded(folder, batch, advantages_T)
    prox_logp_T = policy.logprobs(batch)
    tokens = len(batch.input_ids_T)

    def ours() -> float:
        return rate(tokens, lambda: policy.update(batch, advantages_T=advantages_T, prox_logp_T=prox_logp_T))

    work = f"{parameters / 1e6:.1f} M parameters, {len(batch)} sequences, {tokens} tokens, fp32, 1 thread"
    comparisons = []
    for name, baseline, goal in (
        ("bare model, the same packed pass", same, 0.95),
        ("bare model, sequences padded to a rectangle", padded, None),
    ):
        mine, theirs = by_turns(ours, lambda step=baseline: rate(tokens, step.step), rounds=rounds)  # type: ignore[misc]
        comparisons.append(Comparison("trainer", work, "tokens/s", mine, name, theirs, goal=goal))
    return comparisons


class _Bare:
    """The minimum: forward, log-softmax, policy gradient, backward, AdamW."""

    def __init__(self, path: str, implementation: str) -> None:
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation=implementation
        ).train()
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=OPTIMIZER.lr, fused=True)

    def logits(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of logits, their target tokens and weights."""
        raise NotImplementedError

    def step(self) -> None:
        """One update."""
        logits_NV, target_N, weight_N = self.logits()
        logp_N = torch.log_softmax(logits_NV, -1).gather(1, target_N.unsqueeze(1)).squeeze(1)
        (-(logp_N * weight_N).sum() / len(target_N)).backward()
        self._optimizer.step()
        self._optimizer.zero_grad()


class _SameLayout(_Bare):
    """Uses the policy's layout (shared prompts, no padding), prepared in advance."""

    def __init__(self, path: str, policy: Policy, batch: PackedBatch, advantages_T: Tensor) -> None:
        super().__init__(path, attention.NAME)
        self._layout = lay_out(batch, group_by_prompt(batch, cost=policy.model.cost))
        self._segments = SegmentIndex.of(self._layout.segments, torch.device("cpu"))
        self._weight_N = advantages_T[self._layout.token_N]

    def logits(self) -> tuple[Tensor, Tensor, Tensor]:
        layout = self._layout
        hidden_PH = self.model.base_model(
            input_ids=layout.input_ids_P.unsqueeze(0),
            position_ids=layout.position_ids_P.unsqueeze(0),
            use_cache=False,
            segments=self._segments,
        ).last_hidden_state[0]
        return self.model.get_output_embeddings()(hidden_PH[layout.source_N]), layout.target_N, self._weight_N


class _Padded(_Bare):
    """The usual way: one right-padded row per sequence, with PyTorch's causal attention."""

    def __init__(self, path: str, batch: PackedBatch, advantages_T: Tensor) -> None:
        super().__init__(path, "sdpa")
        ends = batch.cu_seqlens.tolist()
        rows = [slice(a, b) for a, b in pairwise(ends)]
        self._ids_BS = pad_sequence([batch.input_ids_T[row] for row in rows], batch_first=True)
        mask_BS = pad_sequence([batch.loss_mask_T[row] for row in rows], batch_first=True)[:, 1:]
        self._at = mask_BS.nonzero(as_tuple=True)
        self._weight_N = advantages_T[batch.loss_mask_T]

    def logits(self) -> tuple[Tensor, Tensor, Tensor]:
        hidden_BSH = self.model.base_model(input_ids=self._ids_BS, use_cache=False).last_hidden_state
        return (
            self.model.get_output_embeddings()(hidden_BSH[:, :-1][self._at]),
            self._ids_BS[:, 1:][self._at],
            self._weight_N,
        )
