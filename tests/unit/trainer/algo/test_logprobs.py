"""Chunked log-probs equal those of the full vocabulary tensor, forward and backward."""

import math

import pytest
import torch
from torch import Tensor

from areal_trainer.algo import logprobs
from areal_trainer.algo.logprobs import token_logprobs

VOCABULARY, HIDDEN, TOKENS = 37, 8, 23
INDEX = torch.tensor([1, 2, 3, 9, 10, 11, 12, 22])
WHOLE, THREE_TOKENS, LESS_THAN_ONE_TOKEN = 2**20, 3 * 4 * VOCABULARY, 1


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(VOCABULARY, (TOKENS,), generator=generator)


def plain(hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    whole = torch.log_softmax(hidden @ weight.T / temperature, dim=-1)[INDEX - 1]
    return whole.gather(1, ids[INDEX, None])[:, 0], -(whole.exp() * whole).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk_bytes", [WHOLE, THREE_TOKENS, LESS_THAN_ONE_TOKEN])
def test_chunks_give_the_same_log_probs_entropy_and_gradients(chunk_bytes: int, temperature: float) -> None:
    hidden, weight, ids = inputs(torch.float32)
    logp, entropy = token_logprobs(hidden, weight, ids, INDEX, temperature=temperature, chunk_bytes=chunk_bytes)
    expected, expected_entropy = plain(hidden.double(), weight.double(), ids, temperature)
    torch.testing.assert_close(logp.double(), expected, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(entropy.double(), expected_entropy, atol=1e-5, rtol=1e-6)
    assert not entropy.requires_grad
    upstream = torch.linspace(-1, 1, len(INDEX))
    for ours, theirs in zip(
        torch.autograd.grad(logp, (hidden, weight), upstream),
        torch.autograd.grad(expected, (hidden, weight), upstream.double()),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk_bytes", [WHOLE, THREE_TOKENS])
def test_a_weight_tied_to_the_embedding_gets_both_gradients(chunk_bytes: int) -> None:
    _, weight, ids = inputs(torch.float32)
    logp, _ = token_logprobs(torch.tanh(weight[ids]), weight, ids, INDEX, chunk_bytes=chunk_bytes)
    expected, _ = plain(torch.tanh(weight[ids]), weight, ids, 1.0)
    (ours,), (theirs,) = torch.autograd.grad(logp.sum(), weight), torch.autograd.grad(expected.sum(), weight)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk_bytes", [WHOLE, THREE_TOKENS])
def test_a_frozen_input_gets_no_gradient(chunk_bytes: int) -> None:
    hidden, weight, ids = inputs(torch.float32)
    for frozen, trained in ((hidden, weight), (weight, hidden)):
        frozen.requires_grad_(False)
        logp, _ = token_logprobs(hidden, weight, ids, INDEX, chunk_bytes=chunk_bytes)
        expected, _ = plain(hidden, weight, ids, 1.0)
        (ours,), (theirs,) = torch.autograd.grad(logp.sum(), trained), torch.autograd.grad(expected.sum(), trained)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        frozen.requires_grad_(True)


def test_half_precision_sums_chunks_in_full_precision() -> None:
    hidden, weight, ids = inputs(torch.bfloat16)
    whole, _ = token_logprobs(hidden, weight, ids, INDEX)
    cut, _ = token_logprobs(hidden, weight, ids, INDEX, chunk_bytes=THREE_TOKENS)
    assert whole.dtype == cut.dtype == torch.float32
    torch.testing.assert_close(whole, cut, atol=1e-6, rtol=1e-6)
    for a, b in zip(
        torch.autograd.grad(whole.sum(), (hidden, weight)),
        torch.autograd.grad(cut.sum(), (hidden, weight)),
        strict=True,
    ):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a, b, atol=0.05, rtol=0.02)


def test_backward_may_run_twice() -> None:
    hidden, weight, ids = inputs(torch.float32)
    logp, _ = token_logprobs(hidden, weight, ids, INDEX)
    first = torch.autograd.grad(logp.sum(), hidden, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(logp.sum(), hidden)[0], first)


def test_chunks_with_kept_probabilities_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "_CPU_CHUNK_BYTES", THREE_TOKENS)
    hidden, weight, ids = inputs(torch.float32)
    logp, _ = token_logprobs(hidden, weight, ids, INDEX, temperature=0.6)
    expected, _ = plain(hidden, weight, ids, 0.6)
    upstream = torch.linspace(-1, 1, len(INDEX))
    for ours, theirs in zip(
        torch.autograd.grad(logp, (hidden, weight), upstream),
        torch.autograd.grad(expected, (hidden, weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


def test_no_selected_token_gives_empty_log_probs_and_zero_gradients() -> None:
    hidden, weight, ids = inputs(torch.float32)
    logp, entropy = token_logprobs(hidden, weight, ids, INDEX[:0])
    assert logp.shape == entropy.shape == (0,)
    gradients = torch.autograd.grad(logp.sum(), (hidden, weight))
    assert all(not gradient.any() for gradient in gradients)


def test_uniform_logits_give_the_log_of_the_vocabulary() -> None:
    ids = torch.zeros(TOKENS, dtype=torch.int64)
    logp, entropy = token_logprobs(torch.zeros(TOKENS, HIDDEN), torch.ones(VOCABULARY, HIDDEN), ids, INDEX)
    assert logp.tolist() == pytest.approx([-math.log(VOCABULARY)] * len(INDEX))
    assert entropy.tolist() == pytest.approx([math.log(VOCABULARY)] * len(INDEX))
