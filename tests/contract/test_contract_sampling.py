"""Each key of ``gconfig`` on the real server: the trainer computes the log-probs of the sampled distribution, or the
configuration rejects the key."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from areal_api.config import GRPOConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.servers.generation import sampling_params
from support.reference_logprobs import next_logprobs, output_logprobs
from support.tiny_policy import VOCABULARY

from .conftest import EOS, Server

PROMPT = [5, 9, 14, 33, 21]
# Settings whose samples follow softmax(logits / temperature), which is what the trainer computes.
TRAINABLE: dict[str, dict[str, Any]] = {
    "n_samples": {"n_samples": 4},
    "max_new_tokens": {"max_new_tokens": 5},
    "max_tokens": {"max_tokens": 12},
    "temperature": {"temperature": 0.6},
    "stop": {"stop": ["a stop text"]},
    "stop_token_ids": {"stop_token_ids": [7, 8, 9, 10, 11, 12]},
    "ignore_eos": {"ignore_eos": True},
    "skip_special_tokens": {"skip_special_tokens": False},
}
# Settings that sample from another distribution.
UNTRAINABLE: dict[str, dict[str, Any]] = {
    "min_new_tokens": {"min_new_tokens": 12},
    "greedy": {"greedy": True},
    "top_p": {"top_p": 0.5},
    "top_k": {"top_k": 3},
    "frequency_penalty": {"frequency_penalty": 1.5},
}


def configured(gconfig: dict[str, Any]) -> GRPOConfig:
    return GRPOConfig.model_validate(
        {
            "experiment_name": "contract",
            "trial_name": "contract",
            "actor": {"path": "model", "ppo_n_minibatches": 1, "temperature": gconfig.get("temperature", 1.0)},
            "train_dataset": {"path": "rows.jsonl"},
            "gconfig": {"max_new_tokens": 24, **gconfig},
        }
    )


def test_every_key_is_covered() -> None:
    assert set(TRAINABLE) | set(UNTRAINABLE) == set(GenerationHyperparameters.model_fields)
    assert not set(TRAINABLE) & set(UNTRAINABLE)


@pytest.mark.parametrize("key", UNTRAINABLE)
def test_key_that_changes_the_distribution_is_rejected_for_training(key: str) -> None:
    with pytest.raises(ValidationError, match=rf"gconfig\.{key}"):
        configured(UNTRAINABLE[key])


@pytest.mark.real
@pytest.mark.parametrize("key", TRAINABLE)
async def test_servers_and_trainer_agree_on_the_logprobs_of_samples(sglang: Server, model: Path, key: str) -> None:
    gconfig = configured(TRAINABLE[key]).gconfig
    params = sampling_params(gconfig, prompt_len=len(PROMPT), generated=0, n=gconfig.n_samples)
    answers = await sglang.generate(PROMPT, **params)
    for answer in answers if isinstance(answers, list) else [answers]:
        logprobs = [logprob for logprob, _, _ in answer["meta_info"]["output_token_logprobs"]]
        expected = output_logprobs(model, PROMPT, answer["output_ids"], gconfig.temperature)
        assert logprobs == pytest.approx(expected, abs=1e-4)


@pytest.mark.real
@pytest.mark.parametrize("key", ["temperature", "stop_token_ids", "ignore_eos"])
async def test_samples_follow_the_distribution_of_the_logprobs(sglang: Server, model: Path, key: str) -> None:
    """The frequency of each first token is within five standard deviations of its probability."""
    gconfig = configured({**TRAINABLE[key], "max_new_tokens": 1}).gconfig
    n = 2000
    params = sampling_params(gconfig, prompt_len=len(PROMPT), generated=0, n=n)
    answers = await sglang.generate(PROMPT, **params)
    counts = Counter(answer["output_ids"][0] for answer in answers)
    probabilities = next_logprobs(model, PROMPT, gconfig.temperature).exp().tolist()
    assert set(counts) <= set(range(VOCABULARY))
    assert EOS < VOCABULARY
    for token, probability in enumerate(probabilities):
        deviation = (probability * (1 - probability) / n) ** 0.5
        assert abs(counts[token] / n - probability) < 5 * deviation + 1e-3, token


@pytest.mark.real
@pytest.mark.parametrize("key", ["top_p", "top_k", "frequency_penalty"])
async def test_rejected_keys_would_sample_from_another_distribution(sglang: Server, model: Path, key: str) -> None:
    """Samples of the trainer's distribution have the mean log-prob −entropy; these differ by more than 4 errors."""
    gconfig = GenerationHyperparameters(max_new_tokens=24, stop_token_ids=list(range(2, 12)), **UNTRAINABLE[key])
    params = sampling_params(gconfig, prompt_len=len(PROMPT), generated=0, n=400)
    answers = await sglang.generate(PROMPT, **params)
    surprise: list[float] = []
    for answer in answers:
        for i, token in enumerate(answer["output_ids"]):
            logprobs = next_logprobs(model, PROMPT + answer["output_ids"][:i], gconfig.temperature)
            surprise.append(float(logprobs[token] - (logprobs.exp() * logprobs).sum()))
    mean = sum(surprise) / len(surprise)
    variance = sum((value - mean) ** 2 for value in surprise) / len(surprise)
    assert abs(mean) > 4 * (variance / len(surprise)) ** 0.5


@pytest.mark.real
async def test_min_new_tokens_never_samples_a_stop_token_that_the_trainer_gives_probability(
    sglang: Server, model: Path
) -> None:
    stop = list(range(2, 12))
    gconfig = GenerationHyperparameters(max_new_tokens=24, stop_token_ids=stop, min_new_tokens=12)
    params = sampling_params(gconfig, prompt_len=len(PROMPT), generated=0, n=200)
    answers = await sglang.generate(PROMPT, **params)
    assert all(len(answer["output_ids"]) >= 12 for answer in answers)
    unstopped = 1.0  # probability that none of the first 11 tokens is a stop token
    for length in range(11):
        probabilities = next_logprobs(model, PROMPT + answers[0]["output_ids"][:length], gconfig.temperature).exp()
        unstopped *= 1 - float(probabilities[stop].sum())
    assert unstopped < 0.9  # so of 200 answers more than 20 would have ended
