"""Replayed experts: those of the trainer's own routers change nothing, others count as a reference computes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from areal_trainer.batch import pack
from areal_trainer.model.experts import chosen_experts, routers
from areal_trainer.model.layout import Cost, group_by_prompt, lay_out, split_group
from areal_trainer.model.policy import Policy
from areal_trainer.ranks import joined
from areal_trainer.routing import Routing
from areal_trainer.trajectory import Trajectory
from support.policy_ranks import NORM, train, weights
from support.tiny_policy import (
    actor_config,
    plain_logprobs,
    plain_model,
    random_trajectories,
    save_tiny_model,
    with_experts,
)

ADAM = {"lr": 1e-2, "eps": 1e-2}
EXPERTS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True},
    "mixtral": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "dense_layer": {
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 3,
        "mlp_only_layers": [1],
    },
}


@pytest.fixture(params=EXPERTS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    kind = "mixtral" if request.param == "mixtral" else "qwen3_moe"
    return save_tiny_model(tmp_path / "model", kind, tied=False, **EXPERTS[request.param])


def make_policy(model: Path, *, replay: bool = True, **changes: Any) -> Policy:
    settings = {"use_decoupled_loss": True, "reward_norm": NORM, "router_replay": replay, "optimizer": ADAM}
    return Policy(actor_config(model, **(settings | changes)), device="cpu", total_steps=10, seed=1)


def own_experts(model: Path, trajectories: list[Trajectory]) -> list[Trajectory]:
    """The samples with the experts that transformers chooses for all tokens but the last, one sequence at a time."""
    plain, found = plain_model(model), list[np.ndarray]()
    for router in routers(plain):
        router.register_forward_hook(lambda _, __, output: found.append(chosen_experts(output).numpy()))
    result = []
    for trajectory in trajectories:
        found.clear()
        with torch.no_grad():
            plain(input_ids=torch.from_numpy(trajectory.input_ids)[None])
        experts = np.stack(found, axis=1)[:-1].astype(np.uint8)
        result.append(msgspec.structs.replace(trajectory, experts=experts))
    return result


def replayed_reference(plain: PreTrainedModel, trajectory: Trajectory) -> Tensor:
    """Differentiable log-probs of transformers' model with forced experts, whose weights are computed here."""
    assert trajectory.experts is not None
    hooks = []
    for layer, router in enumerate(routers(plain)):
        recorded = torch.from_numpy(trajectory.experts[:, layer].astype(np.int64))

        def forced(_: nn.Module, __: Any, output: Any, recorded: Tensor = recorded) -> tuple[Tensor, Tensor, Tensor]:
            logits, _scores, own = output
            chosen = torch.cat([recorded, own[len(recorded) :]])
            probs = functional.softmax(logits.float(), -1)
            scores = torch.stack([probs[torch.arange(len(probs)), chosen[:, k]] for k in range(2)], 1)
            if getattr(plain.config, "norm_topk_prob", True):
                scores = scores / scores.sum(-1, keepdim=True)
            return logits, scores, chosen

        hooks.append(router.register_forward_hook(forced))
    result = plain_logprobs(plain, trajectory)
    for hook in hooks:
        hook.remove()
    return result


def gradients(policy: Policy, trajectories: list[Trajectory]) -> dict[str, Tensor]:
    policy.model.train()
    batch = pack(trajectories)
    logp_N, _ = policy.model(lay_out(batch, group_by_prompt(batch, cost=policy.model.cost)))
    logp_N.sum().backward()
    found = {name: p.grad for name, p in policy.model.named_parameters() if p.grad is not None}
    policy.model.zero_grad()
    return found


@pytest.fixture
def grouped(tmp_path: Path) -> Path:
    """A model whose routers choose groups first, by scores with a bias, and weigh by sigmoid."""
    sizes = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
    return save_tiny_model(
        tmp_path / "model", "glm4_moe", tied=False, num_hidden_layers=3, moe_intermediate_size=16, head_dim=8, **sizes
    )


def test_routers_that_choose_groups_first_replay_experts_too(grouped: Path) -> None:
    trajectories = own_experts(grouped, random_trajectories())
    policy, usual = make_policy(grouped), make_policy(grouped, replay=False)
    assert policy.routing == Routing(3, (1, 2), 2, 8)
    assert torch.equal(policy.logprobs(pack(trajectories)), usual.logprobs(pack(trajectories)))
    numbers = train(policy, with_experts(random_trajectories(), experts=8))
    assert numbers["grpo_actor/experts_replaced"] > 0.3


def test_the_routers_own_experts_change_nothing(model: Path) -> None:
    trajectories = own_experts(model, random_trajectories())
    policy, usual = make_policy(model), make_policy(model, replay=False)
    policy.check_exactness()
    assert torch.equal(policy.logprobs(pack(trajectories)), usual.logprobs(pack(trajectories)))
    found, expected = gradients(policy, trajectories), gradients(usual, trajectories)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    numbers, others = train(policy, trajectories), train(usual, trajectories)
    assert numbers.pop("grpo_actor/experts_replaced") == 0
    without = {name: value for name, value in numbers.items() if "without_replay" not in name}
    assert without == others
    for name in ("avg", "max"):
        assert numbers[f"grpo_actor/rollout_logprob_diff_without_replay/{name}"] == pytest.approx(
            numbers[f"grpo_actor/rollout_logprob_diff/{name}"], rel=1e-6
        )
    assert all(torch.equal(tensor, weights(usual)[name]) for name, tensor in weights(policy).items())


def test_other_experts_count_as_the_reference_computes_them(model: Path) -> None:
    trajectories = with_experts(random_trajectories(), experts=6)
    policy, plain = make_policy(model), plain_model(model)
    expected_T = torch.cat([replayed_reference(plain, trajectory) for trajectory in trajectories])
    logp_T = policy.logprobs(pack(trajectories))
    torch.testing.assert_close(logp_T, expected_T, atol=1e-5, rtol=0)
    assert (logp_T - make_policy(model, replay=False).logprobs(pack(trajectories))).abs().max() > 0.1


def test_gradients_with_other_experts_are_those_of_the_reference(model: Path) -> None:
    trajectory = with_experts(random_trajectories(1, 1), experts=6)[0]
    found = gradients(make_policy(model), [trajectory])
    plain = plain_model(model)
    replayed_reference(plain, trajectory).sum().backward()
    for name, parameter in plain.named_parameters():
        ours = found[f"causal_lm.{name}"]
        torch.testing.assert_close(ours, parameter.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "changes", [{"gradient_checkpointing": True}, {"mb_spec": {"n_mbs": 3}}, {"attn_impl": "eager"}]
)
def test_splits_padding_and_checkpointing_do_not_change_an_update(model: Path, changes: dict[str, Any]) -> None:
    trajectories = with_experts(random_trajectories(), experts=6)
    one, other = make_policy(model), make_policy(model, **changes)
    first, second = train(one, trajectories), train(other, trajectories)
    assert first["grpo_actor/grad_norm"] == pytest.approx(second["grpo_actor/grad_norm"], rel=1e-5)
    replaced = [numbers["grpo_actor/experts_replaced"] for numbers in (first, second)]
    assert min(replaced) > 0.3
    if "attn_impl" not in changes:  # which does not share prompts, whose choices then count several times
        assert replaced[0] == pytest.approx(replaced[1], rel=1e-6)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(other)[name], tensor, atol=1e-5, rtol=0)


def test_prompts_are_shared_as_far_as_servers_chose_the_same_experts(model: Path) -> None:
    samples = with_experts(random_trajectories(1, 3), experts=6)
    prompt_len = samples[0].prompt_len
    assert samples[1].experts is not None
    changed = samples[1].experts.copy()
    changed[prompt_len - 2, 1] = changed[prompt_len - 2, 1, ::-1]
    samples[1] = msgspec.structs.replace(samples[1], experts=changed)
    policy, batch = make_policy(model), pack(samples)
    policy.model.cost = Cost(token=1.0, pair=0.0)
    [group] = group_by_prompt(batch, cost=policy.model.cost)
    assert (group.members, group.shared) == ((0, 1, 2), prompt_len - 2)
    split = split_group(group, batch)
    assert [(part.members, part.shared) for part in split] == [((0,), 0), ((1, 2), prompt_len - 2)]
    plain = plain_model(model)
    expected_T = torch.cat([replayed_reference(plain, sample) for sample in samples])
    torch.testing.assert_close(policy.logprobs(batch), expected_T, atol=1e-5, rtol=0)


def test_a_sample_without_experts_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match=r"has experts of shape None per token instead of \(2, 2\)"):
        train(make_policy(model), random_trajectories())


def test_a_model_without_routers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"actor\.router_replay is true, but Qwen3ForCausalLM has no routers"):
        make_policy(save_tiny_model(tmp_path))


def test_routers_that_do_not_choose_by_topk_are_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sorting(router: nn.Module, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert isinstance(router.weight, Tensor)
        logits = functional.linear(hidden_states.reshape(-1, hidden_states.shape[-1]), router.weight)
        values, order = logits.sort(dim=-1, descending=True)
        return logits, values[:, :2], order[:, :2]

    for router in routers(plain_model(model)):
        monkeypatch.setattr(type(router), "forward", sorting)
    with pytest.raises(ValueError, match="ignore the experts they are given; set it to false"):
        make_policy(model)


def test_bfloat16_replays_too(model: Path) -> None:
    trajectories = with_experts(random_trajectories(), experts=6)
    with joined("cpu"):
        logp_T = make_policy(model, dtype="bfloat16").logprobs(pack(trajectories))
    plain = plain_model(model)
    expected_T = torch.cat([replayed_reference(plain, trajectory) for trajectory in trajectories])
    assert (logp_T - expected_T).abs().mean() < 0.1
    assert make_policy(model).routing == Routing(
        plain.config.num_hidden_layers, (0, 1) if plain.config.num_hidden_layers == 2 else (0, 2), 2, 6
    )
