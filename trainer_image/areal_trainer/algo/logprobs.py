"""Log-probs and entropy of selected tokens, without a [tokens, vocabulary] tensor."""

# T tokens, N selected tokens, C tokens of a chunk, H hidden size, V vocabulary

from typing import Any

import torch
from torch import Tensor

DEFAULT_CHUNK_BYTES = 256 * 2**20
# Measured on two x86 cores: several passes over chunks that fit in the cache are faster than one over all tokens.
_CPU_CHUNK_BYTES = 4 * 2**20


def token_logprobs(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    input_ids_T: Tensor,
    index_N: Tensor,
    *,
    temperature: float = 1.0,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy (nats, float32 over N) of the tokens at positions `index_N`.

    Token t is predicted by the hidden state at t − 1, so an index is ≥ 1 and never the first of its sequence; padded
    batches are flattened. Logits are `hidden @ weight.T / temperature`, log-softmax in float32. The log-probs are
    differentiable in `hidden_TH` and `weight_VH` (also tied to the embedding); the entropy is not. Float32 tensors over
    the vocabulary are limited to `chunk_bytes` (at least one token). If all N tokens fit, their probabilities are kept
    for the backward pass; otherwise it recomputes each chunk. `weight_VH` is a plain (unsharded) tensor.
    """
    hidden_NH = hidden_TH.index_select(0, index_N - 1)
    return _apply(hidden_NH, weight_VH, input_ids_T.index_select(0, index_N), temperature, chunk_bytes)


def _apply(
    hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, temperature: float, chunk_bytes: int
) -> tuple[Tensor, Tensor]:
    token_bytes = 4 * weight_VH.shape[0]
    keep = len(targets_N) * token_bytes <= chunk_bytes
    if hidden_NH.device.type == "cpu":
        chunk_bytes = min(chunk_bytes, _CPU_CHUNK_BYTES)
    chunk = max(1, chunk_bytes // token_bytes)
    logp_N, entropy_N = _ChunkedLogprobs.apply(hidden_NH, weight_VH, targets_N, temperature, chunk, keep)
    return logp_N, entropy_N


def _logits(hidden_CH: Tensor, weight_VH: Tensor, temperature: float) -> Tensor:
    logits_CV = torch.mm(hidden_CH, weight_VH.t()).float()
    return logits_CV if temperature == 1.0 else logits_CV.div_(temperature)


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, temperature: float, chunk: int, keep: bool
    ) -> tuple[Tensor, Tensor]:
        logp_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_NH.device)
        entropy_N = torch.empty_like(logp_N)
        keep = keep and any(ctx.needs_input_grad)
        kept: list[Tensor] = []
        for start in range(0, len(targets_N), chunk):
            part = slice(start, start + chunk)
            logprobs_CV = torch.log_softmax(_logits(hidden_NH[part], weight_VH, temperature), dim=-1)
            logp_N[part] = logprobs_CV.gather(1, targets_N[part].unsqueeze(1)).squeeze(1)
            probs_CV = logprobs_CV.exp()
            entropy_N[part] = -torch.linalg.vecdot(probs_CV, logprobs_CV)
            if keep:
                kept.append(probs_CV)
        ctx.save_for_backward(hidden_NH, weight_VH, targets_N, *kept)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropy_N)
        return logp_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # d logp / d logits = (onehot(target) − softmax) / temperature
        hidden_NH, weight_VH, targets_N, *kept = ctx.saved_tensors
        upstream_N1 = (grads[0] / ctx.temperature).unsqueeze(1)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden_NH = torch.empty_like(hidden_NH) if wants_hidden else None
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if wants_weight else None
        for number, start in enumerate(range(0, len(targets_N), ctx.chunk)):
            part = slice(start, start + ctx.chunk)
            if kept:
                probs_CV = kept[number]
            else:
                probs_CV = torch.softmax(_logits(hidden_NH[part], weight_VH, ctx.temperature), dim=-1)
            grad_CV = probs_CV * -upstream_N1[part]
            grad_CV = grad_CV.scatter_add_(1, targets_N[part].unsqueeze(1), upstream_N1[part]).to(weight_VH.dtype)
            if grad_hidden_NH is not None:
                torch.mm(grad_CV, weight_VH, out=grad_hidden_NH[part])
            if grad_weight_VH is not None:
                _accumulate(grad_weight_VH, grad_CV, hidden_NH[part])
        grad_weight = None if grad_weight_VH is None else grad_weight_VH.to(weight_VH.dtype)
        return grad_hidden_NH, grad_weight, None, None, None, None


def _accumulate(total_VH: Tensor, grad_CV: Tensor, hidden_CH: Tensor) -> None:
    if grad_CV.dtype == total_VH.dtype:
        total_VH.addmm_(grad_CV.t(), hidden_CH)
    else:
        # Sum in float32: a bfloat16 sum of many chunks would lose small values.
        total_VH += torch.mm(grad_CV.t(), hidden_CH)
