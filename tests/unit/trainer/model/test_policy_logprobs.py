"""Log-probs of the policy against a plain model on single sequences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from areal_api.actor import MicroBatchSpec
from areal_trainer.batch import pack
from areal_trainer.model.layout import Cost, group_by_prompt
from areal_trainer.model.policy import Policy, ReferenceModel
from areal_trainer.trajectory import Trajectory
from support.tiny_policy import actor_config, plain_logprobs, plain_model, random_trajectories, save_tiny_model


def policy_of(path: Path, **changes: Any) -> Policy:
    return Policy(actor_config(path, **changes), device="cpu", total_steps=10, seed=1)


def expected_logprobs(path: Path, trajectories: list[Trajectory], **how: Any) -> torch.Tensor:
    model = plain_model(path)
    with torch.no_grad():
        return torch.cat([plain_logprobs(model, trajectory, **how) for trajectory in trajectories])


@pytest.mark.parametrize("kind", ["qwen3", "llama", "qwen2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_and_padded_logprobs_equal_those_of_single_sequences(tmp_path: Path, kind: str, attention: str) -> None:
    path = save_tiny_model(tmp_path, kind)
    trajectories = random_trajectories()
    logprobs = policy_of(path, attn_impl=attention).logprobs(pack(trajectories))
    torch.testing.assert_close(logprobs, expected_logprobs(path, trajectories), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "qwen2"])
def test_a_packed_sequence_does_not_see_its_neighbours(tmp_path: Path, kind: str) -> None:
    policy = policy_of(save_tiny_model(tmp_path, kind))
    first, *others = random_trajectories(groups=4, samples=1)
    different = random_trajectories(groups=4, samples=1, seed=9)[1:]
    alone = policy.logprobs(pack([first]))
    for neighbours in (others, different):
        together = policy.logprobs(pack([first, *neighbours]))[: len(first)]
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_an_untied_output_embedding_is_used(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path, tied=False)
    trajectories = random_trajectories()
    logprobs = policy_of(path).logprobs(pack(trajectories))
    torch.testing.assert_close(logprobs, expected_logprobs(path, trajectories), atol=1e-5, rtol=0)


def test_a_shared_prompt_is_computed_once(tmp_path: Path) -> None:
    batch = pack(random_trajectories(groups=2, samples=4))
    groups = group_by_prompt(batch, cost=policy_of(save_tiny_model(tmp_path)).model.cost)
    assert [group.members for group in groups] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    prompts = [batch.trajectories[group.members[0]].prompt_len for group in groups]
    assert sum(group.tokens for group in groups) == sum(batch.lengths) - 3 * sum(prompts)


def test_a_prompt_is_shared_if_that_costs_less() -> None:
    # Masked pairs can cost more than the saved prompt tokens: with p prompt and c completion tokens, two samples save p
    # tokens and compute (c² − p²/2) more pairs.
    batch = pack(random_trajectories(groups=2, samples=2, longest=40))
    assert [group.shared > 0 for group in group_by_prompt(batch, cost=Cost(token=1.0, pair=100.0))] == [False] * 4
    assert [group.shared > 0 for group in group_by_prompt(batch, cost=Cost(token=1e6, pair=1.0))] == [True] * 2


def test_only_tokens_in_the_loss_mask_are_trained(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    turns = [
        Trajectory.of_lists(
            input_ids=[5, 6, 7, 8, 9, 10, 11, 12 + i],
            loss_mask=[False, False, True, True, False, False, True, True],
            logprobs=[0.0] * 8,
            versions=[-1, -1, 0, 0, -1, -1, 1, 1],
            reward=1.0,
            prompt_len=2,
            finish_reason="stop",
            group=0,
        )
        for i in range(3)
    ]
    logprobs = policy_of(path).logprobs(pack(turns))
    torch.testing.assert_close(logprobs, expected_logprobs(path, turns), atol=1e-5, rtol=0)
    assert (logprobs.view(3, 8)[:, [0, 1, 4, 5]] == 0).all()


def test_the_sliding_window_is_respected(tmp_path: Path) -> None:
    path = save_tiny_model(
        tmp_path, "qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1, num_hidden_layers=2
    )
    trajectories = random_trajectories(longest=20)
    logprobs = policy_of(path).logprobs(pack(trajectories))
    torch.testing.assert_close(logprobs, expected_logprobs(path, trajectories), atol=1e-5, rtol=0)


def test_temperature_divides_the_logits(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    trajectories = random_trajectories()
    logprobs = policy_of(path, temperature=0.7).logprobs(pack(trajectories))
    torch.testing.assert_close(logprobs, expected_logprobs(path, trajectories, temperature=0.7), atol=1e-5, rtol=0)


@pytest.mark.parametrize("spec", [{"max_tokens_per_mb": 25}, {"n_mbs": 5}, {"n_mbs": 40}])
def test_microbatches_do_not_change_the_logprobs(tmp_path: Path, spec: dict[str, int]) -> None:
    path = save_tiny_model(tmp_path)
    batch = pack(random_trajectories())
    whole = policy_of(path).logprobs(batch)
    torch.testing.assert_close(policy_of(path, mb_spec=spec).logprobs(batch), whole, atol=1e-5, rtol=0)


def test_no_sequences_give_no_logprobs(tmp_path: Path) -> None:
    assert policy_of(save_tiny_model(tmp_path)).logprobs(pack([])).shape == (0,)


def test_the_reference_model_agrees_with_an_untrained_policy_and_has_no_gradients(tmp_path: Path) -> None:
    config = actor_config(save_tiny_model(tmp_path))
    batch = pack(random_trajectories())
    reference = ReferenceModel(config, device="cpu")
    policy = Policy(config, device="cpu", total_steps=1, seed=1)
    torch.testing.assert_close(reference.logprobs(batch), policy.logprobs(batch), atol=0, rtol=0)
    assert not any(parameter.requires_grad for parameter in reference.model.parameters())


def test_a_sequence_longer_than_a_microbatch_is_refused_by_name(tmp_path: Path) -> None:
    policy = policy_of(save_tiny_model(tmp_path), mb_spec=MicroBatchSpec(max_tokens_per_mb=3))
    with pytest.raises(ValueError, match=r"actor\.mb_spec\.max_tokens_per_mb is 3, but a sequence has"):
        policy.logprobs(pack(random_trajectories()))


def test_a_missing_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"actor\.path is '.*nothing'"):
        policy_of(tmp_path / "nothing")


def test_a_model_that_transforms_its_logits_is_refused(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"final_logit_softcapping": 30.0}))
    with pytest.raises(ValueError, match="has final_logit_softcapping, which the trainer does not compute"):
        policy_of(path)


def test_flash_attention_on_the_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set attn_impl: sdpa"):
        policy_of(save_tiny_model(tmp_path), attn_impl="flash_attention_2")


def test_float16_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set bfloat16 or float32"):
        policy_of(save_tiny_model(tmp_path), dtype="float16")


def test_a_trained_first_token_is_refused() -> None:
    bad = Trajectory.of_lists(
        input_ids=[3, 4],
        loss_mask=[True, True],
        logprobs=[0.0, -1.0],
        versions=[0, 0],
        reward=0.0,
        prompt_len=1,
        finish_reason="stop",
        task_id="seven",
    )
    with pytest.raises(ValueError, match="task 'seven'"):
        pack([bad])


def test_groups_are_numbered_densely() -> None:
    trajectories = [t.in_group(group) for t, group in zip(random_trajectories(1, 4), (40, 7, 40, 9), strict=True)]
    batch = pack(trajectories)
    assert batch.group_B.tolist() == [2, 0, 2, 1]
    assert batch.n_groups == 3
    assert batch.cu_seqlens.tolist() == np.cumsum([0, *batch.lengths]).tolist()
