"""The batch and the requests that make the first step as quick as later ones."""

from __future__ import annotations

from typing import Any

import pytest

from areal_api.config import GRPOConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.warm_up import random_batch, random_prompts
from support.engines import engine_on
from support.scripted_server import Script, ScriptedServer


def config(**actor: Any) -> GRPOConfig:
    return GRPOConfig(
        experiment_name="e",
        trial_name="t",
        gconfig={"n_samples": 4, "max_new_tokens": 20},
        actor={"path": "model", **actor},
        train_dataset={"path": "data", "batch_size": 6},
    )


def test_the_batch_is_of_the_configured_size():
    batch = random_batch(config(), vocab_size=100, longest=4096, ranks=1)
    assert len(batch) == 24
    assert batch.n_groups == 6
    assert batch.lengths == [52] * 24
    assert int(batch.loss_mask_T.sum()) == 24 * 20


def test_ranks_share_the_batch():
    assert len(random_batch(config(), vocab_size=100, longest=4096, ranks=4)) == 8


@pytest.mark.parametrize(("limit", "sequences", "length"), [(520, 10, 52), (60, 1, 52), (20, 1, 20)])
def test_the_batch_is_no_more_than_a_microbatch(limit: int, sequences: int, length: int):
    bounded = config(mb_spec={"max_tokens_per_mb": limit})
    assert random_batch(bounded, vocab_size=100, longest=4096, ranks=1).lengths == [length] * sequences


def test_no_sequence_is_longer_than_the_model_takes():
    assert set(random_batch(config(), vocab_size=100, longest=40, ranks=1).lengths) == {40}


@pytest.mark.parametrize("vocab_size", [2, 97, 150_000])
def test_prompts_are_of_ordinary_tokens_that_the_model_knows(vocab_size: int):
    ids = {token for prompt in random_prompts(50, tokens=16, vocab_size=vocab_size) for token in prompt}
    assert ids <= set(range(min(vocab_size, 256)))
    assert vocab_size < 4 or min(ids) >= 3


def test_every_server_gets_its_share_of_the_first_requests_and_no_episode_is_counted():
    prompts = random_prompts(16, tokens=16, vocab_size=512)
    held = Script(token_s=0.01)
    with ScriptedServer(held) as first, ScriptedServer(held) as second, engine_on(first, second) as engine:
        before = engine.state_dict()
        assert engine.current_servers() == [first.address, second.address]
        engine.warm_up(prompts, GenerationHyperparameters(max_new_tokens=3, ignore_eos=True), n=2)
        assert first.counts["/generate"] == second.counts["/generate"] == 8
        assert engine.state_dict() == before
