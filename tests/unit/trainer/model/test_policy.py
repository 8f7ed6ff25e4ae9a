"""The update against plain loops, and its behaviour on faults."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from transformers import GenerationConfig, modeling_utils

from areal_api.actor import OptimizerConfig
from areal_trainer.algo.corrections import behaviour_kl_penalty
from areal_trainer.batch import PackedBatch, pack
from areal_trainer.model.optimizer import learning_rate
from areal_trainer.model.policy import Policy
from areal_trainer.weights.finite import NonFiniteWeightsError
from support.policy_ranks import load
from support.tiny_policy import actor_config, plain_logprobs, plain_model, random_trajectories, save_tiny_model

SGD = {"type": "sgd", "lr": 0.1, "weight_decay": 0.0, "gradient_clipping": 1e9}


def policy_of(path: Path, *, total_steps: int = 10, **changes: Any) -> Policy:
    return Policy(actor_config(path, **changes), device="cpu", total_steps=total_steps, seed=1)


def random_advantages(batch: PackedBatch) -> Tensor:
    return torch.randn(len(batch.input_ids_T), generator=torch.Generator().manual_seed(3)) * batch.loss_mask_T


def weights(policy: Policy) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in policy.named_full_tensors()}


def copy_state(source: Policy, target: Policy, directory: Path) -> None:
    """Copy the state through a checkpoint on disk."""
    dcp.save(source.state_dict(), checkpoint_id=directory, no_dist=True)
    load(target, directory)


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=tolerance, rtol=0)


def test_a_gradient_descent_step_equals_a_plain_loop(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    trajectories = random_trajectories()
    batch = pack(trajectories)
    advantages_T, policy = random_advantages(batch), policy_of(path, optimizer=SGD)
    policy.update(batch, advantages_T=advantages_T)

    model = plain_model(path)
    logp_T = torch.cat([plain_logprobs(model, trajectory) for trajectory in trajectories])
    total = torch.zeros(())
    for t in batch.loss_mask_T.nonzero().squeeze(1).tolist():
        ratio = torch.exp(logp_T[t] - batch.behav_logp_T[t])
        total = total + torch.max(-advantages_T[t] * ratio, -advantages_T[t] * ratio.clamp(0.8, 1.2))
    (total / batch.loss_mask_T.sum()).backward()
    expected = {name: p.detach() - 0.1 * p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_same(weights(policy), expected, 1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("spec", [{"max_tokens_per_mb": 25}, {"n_mbs": 3}, {"n_mbs": 40}])
def test_the_update_does_not_depend_on_the_microbatches(tmp_path: Path, spec: dict[str, int], attention: str) -> None:
    path = save_tiny_model(tmp_path)
    batch = pack(random_trajectories())
    whole, cut = policy_of(path, optimizer=SGD), policy_of(path, optimizer=SGD, mb_spec=spec, attn_impl=attention)
    advantages_T = random_advantages(batch)
    numbers = whole.update(batch, advantages_T=advantages_T)
    assert cut.update(batch, advantages_T=advantages_T) == pytest.approx(numbers, rel=1e-5, abs=1e-4)
    assert_same(weights(whole), weights(cut), 1e-5)


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    batch = pack(random_trajectories())
    plain, checkpointed = policy_of(path, optimizer=SGD), policy_of(path, optimizer=SGD, gradient_checkpointing=True)
    for policy in (plain, checkpointed):
        policy.update(batch, advantages_T=random_advantages(batch))
    assert_same(weights(plain), weights(checkpointed), 1e-6)


def test_a_part_of_the_layers_is_recomputed_and_changes_nothing(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path, num_hidden_layers=5)
    batch = pack(random_trajectories())
    plain = policy_of(path, optimizer=SGD)
    every_second = policy_of(path, optimizer=SGD, gradient_checkpointing=True, checkpoint_every=2)
    calls = [0] * 5
    for number, layer in enumerate(every_second.model.causal_lm.model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, n=number: calls.__setitem__(n, calls[n] + 1))
    for policy in (plain, every_second):
        policy.update(batch, advantages_T=random_advantages(batch))
    assert_same(weights(plain), weights(every_second), 1e-6)
    assert [count > min(calls) for count in calls] == [True, False, True, False, True]


def test_offloaded_activations_are_the_inputs_of_layers_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_tiny_model(tmp_path, num_hidden_layers=3)
    batch = pack(random_trajectories())
    plain, offloading = policy_of(path, optimizer=SGD), policy_of(path, optimizer=SGD)
    shapes: list[tuple[int, ...]] = []

    def on_host(**_: Any) -> Any:
        def pack_tensor(tensor: Tensor) -> Tensor:
            shapes.append(tuple(tensor.shape))
            return tensor.clone()

        return torch.autograd.graph.saved_tensors_hooks(pack_tensor, lambda kept: kept.clone())

    monkeypatch.setattr(modeling_utils, "save_on_cpu", on_host)
    offloading.model.device = torch.device("cuda")  # without one, nothing is offloaded
    offloading.model.recompute_activations(every=1, offload=True)
    offloading.model.device = torch.device("cpu")
    for policy in (plain, offloading):
        policy.update(batch, advantages_T=random_advantages(batch))
    assert_same(weights(plain), weights(offloading), 1e-6)
    assert [shape for shape in shapes if shape[-1] == 32] == shapes
    assert len(shapes) % 3 == 0
    assert len(set(shapes)) == 1


def test_dropout_is_active_unless_disabled(tmp_path: Path) -> None:
    batch = pack(random_trajectories())
    plain, dropping = save_tiny_model(tmp_path / "a"), save_tiny_model(tmp_path / "b", attention_dropout=0.5)
    policies = [
        policy_of(plain, optimizer=SGD),
        policy_of(dropping, optimizer=SGD, disable_dropout=True),
        policy_of(dropping, optimizer=SGD),
    ]
    for policy in policies:
        policy.update(batch, advantages_T=random_advantages(batch))
    none, disabled, active = (weights(policy) for policy in policies)
    assert_same(none, disabled, 0)
    assert not torch.allclose(none["model.norm.weight"], active["model.norm.weight"])


def test_the_gradient_norm_is_clipped(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    batch = pack(random_trajectories())
    policy = policy_of(path, optimizer=SGD | {"gradient_clipping": 0.01})
    before = weights(policy)
    numbers = policy.update(batch, advantages_T=random_advantages(batch))
    moved = math.sqrt(sum(float((tensor - before[name]).square().sum()) for name, tensor in weights(policy).items()))
    assert numbers["grpo_actor/grad_norm"] > 0.01
    assert moved == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_every_minibatch_is_one_optimizer_step(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    batch = pack(random_trajectories(groups=1, samples=4))
    policy = policy_of(path, ppo_n_minibatches=3)
    numbers = policy.update(batch, advantages_T=random_advantages(batch))
    assert {float(state["step"]) for state in policy.state_dict()["optimizer"]["state"].values()} == {3.0}
    assert numbers["grpo_actor/update_successful"] == 1.0


def test_an_update_far_from_the_behaviour_policy_is_scaled_down(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    batch = pack(random_trajectories())
    plain = policy_of(path, recompute_logprob=True, optimizer=SGD)
    scaled = policy_of(path, recompute_logprob=True, optimizer=SGD, correction={"kl_budget": 0.01})
    before, prox_logp_T = weights(plain), plain.logprobs(batch)
    for policy in (plain, scaled):
        numbers = policy.update(batch, advantages_T=random_advantages(batch), prox_logp_T=prox_logp_T)
    d = (prox_logp_T - batch.behav_logp_T)[batch.loss_mask_T].double()
    kl = float((torch.expm1(d) - d).mean())
    assert numbers["grpo_actor/behave_kl/avg"] == pytest.approx(kl, rel=1e-4)
    assert numbers["grpo_actor/lr_scale"] == pytest.approx(math.sqrt(0.01 / kl), rel=1e-4)
    assert numbers["grpo_actor/lr"] == pytest.approx(0.1 * math.sqrt(0.01 / kl), rel=1e-4)
    for name, tensor in weights(scaled).items():
        expected = before[name] + math.sqrt(0.01 / kl) * (weights(plain)[name] - before[name])
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"use_decoupled_loss": True}, {"use_sapo_loss": True}])
def test_the_kl_penalty_adds_its_gradient_to_every_loss(tmp_path: Path, settings: dict[str, bool]) -> None:
    path = save_tiny_model(tmp_path)
    batch = pack(random_trajectories())
    plain = policy_of(path, recompute_logprob=True, optimizer=SGD, **settings)
    penalised = Policy(plain.config, device="cpu", total_steps=10, seed=1, kl_penalty=0.5)
    before, prox_logp_T, advantages_T = weights(plain), plain.logprobs(batch), random_advantages(batch)
    for policy in (plain, penalised):
        numbers = policy.update(batch, advantages_T=advantages_T, prox_logp_T=prox_logp_T)
    model = plain_model(path)
    logp_T = torch.cat([plain_logprobs(model, trajectory) for trajectory in batch.trajectories])
    trained_N = advantages_T[batch.loss_mask_T]
    scale = 0.5 * float(trained_N[trained_N != 0].square().mean().sqrt())
    penalty = scale * behaviour_kl_penalty(logp_T, batch.behav_logp_T)[batch.loss_mask_T].mean()
    penalty.backward()
    assert numbers["grpo_actor/kl_penalty/avg"] == pytest.approx(float(penalty.detach()), rel=1e-4)
    expected = {name: -0.1 * p.grad for name, p in model.named_parameters() if p.grad is not None}
    moved = {name: tensor - weights(plain)[name] for name, tensor in weights(penalised).items()}
    assert before.keys() == moved.keys()
    assert_same(moved, expected, 1e-5)


@pytest.mark.parametrize("recomputed", [True, False])
def test_an_update_beyond_kl_skip_changes_nothing(tmp_path: Path, recomputed: bool) -> None:
    policy = policy_of(save_tiny_model(tmp_path), recompute_logprob=recomputed, correction={"kl_skip": 0.001})
    batch = pack(random_trajectories())
    before, prox_logp_T = weights(policy), policy.logprobs(batch) if recomputed else None
    numbers = policy.update(batch, advantages_T=random_advantages(batch), prox_logp_T=prox_logp_T)
    assert_same(weights(policy), before, 0)
    assert numbers["grpo_actor/lr_scale"] == numbers["grpo_actor/update_successful"] == 0.0
    assert numbers["grpo_actor/nonfinite_minibatches"] == 0.0


def test_a_non_finite_gradient_skips_the_step_and_is_reported(tmp_path: Path) -> None:
    policy = policy_of(save_tiny_model(tmp_path), ppo_n_minibatches=2)
    batch = pack(random_trajectories(groups=2))
    before = weights(policy)
    advantages_T = random_advantages(batch) * math.inf
    numbers = policy.update(batch, advantages_T=advantages_T.nan_to_num(nan=0.0))
    assert_same(weights(policy), before, 0)
    assert numbers["grpo_actor/update_successful"] == 0.0
    assert numbers["grpo_actor/nonfinite_minibatches"] == 2.0
    assert "grpo_actor/grad_norm" not in numbers
    numbers = policy.update(batch, advantages_T=random_advantages(batch))
    assert numbers["grpo_actor/update_successful"] == 1.0


def test_non_finite_weights_are_found_by_name(tmp_path: Path) -> None:
    policy = policy_of(save_tiny_model(tmp_path))
    policy.require_finite()
    with torch.no_grad():
        policy.model.causal_lm.model.norm.weight[3] = math.nan
    with pytest.raises(NonFiniteWeightsError, match=r"model\.norm\.weight"):
        policy.require_finite()
    with pytest.raises(NonFiniteWeightsError, match=r"model\.norm\.weight"):
        policy.save_hf(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_empty_minibatches_are_skipped(tmp_path: Path) -> None:
    policy = policy_of(save_tiny_model(tmp_path), ppo_n_minibatches=4)
    batch = pack(random_trajectories(groups=1, samples=3))
    numbers = policy.update(batch, advantages_T=random_advantages(batch))
    assert numbers["grpo_actor/update_successful"] == 0.75
    assert all(math.isfinite(value) for value in numbers.values())


def test_decoupled_dropped_tokens_stay_in_the_denominator(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    batch = pack(random_trajectories())
    policy = policy_of(path, use_decoupled_loss=True, behav_imp_weight_cap=1.5, optimizer=SGD)
    prox_logp_T = policy.logprobs(batch)
    numbers = policy.update(batch, advantages_T=random_advantages(batch), prox_logp_T=prox_logp_T)
    mask = batch.loss_mask_T
    weight = (prox_logp_T - batch.behav_logp_T)[mask].exp()
    losses = torch.where(weight <= 1.5, -random_advantages(batch)[mask] * weight, 0.0)
    assert numbers["grpo_actor/actor_loss/avg"] == pytest.approx(float(losses.mean()), abs=1e-5)
    assert numbers["grpo_actor/importance_weight/avg"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("changes", [{"ppo_n_minibatches": 2}, {"m2_threshold": 0.04}], ids=["minibatches", "M2PO"])
def test_the_proximal_logprobs_must_be_given_if_the_update_cannot_compute_them(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    policy = policy_of(save_tiny_model(tmp_path), use_decoupled_loss=True, **changes)
    batch = pack(random_trajectories())
    assert policy.needs_logprobs
    with pytest.raises(ValueError, match="need prox_logp_T"):
        policy.update(batch, advantages_T=random_advantages(batch))


def test_dropout_makes_the_updates_own_logprobs_random(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path, attention_dropout=0.1)
    assert policy_of(path, use_decoupled_loss=True).needs_logprobs
    assert not policy_of(path, use_decoupled_loss=True, disable_dropout=True).needs_logprobs


@pytest.mark.parametrize(
    "changes",
    [
        {"use_decoupled_loss": True, "correction": {"max_sequence_weight": 3.0, "min_weight": 0.2}},
        {"recompute_logprob": True, "importance_sampling_level": "sequence"},
    ],
    ids=["decoupled", "sequence level"],
)
def test_with_one_minibatch_the_update_computes_the_proximal_logprobs_itself(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = save_tiny_model(tmp_path)
    batch = pack(random_trajectories())
    advantages_T = random_advantages(batch)
    common: dict[str, Any] = {"optimizer": SGD, "max_logprob_diff": 1e6, "mb_spec": {"max_tokens_per_mb": 40}}
    alone, given = policy_of(path, **common, **changes), policy_of(path, **common, **changes)
    assert not alone.needs_logprobs
    expected = given.update(batch, advantages_T=advantages_T, prox_logp_T=given.logprobs(batch))
    assert alone.update(batch, advantages_T=advantages_T) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert_same(weights(alone), weights(given), 1e-6)


@pytest.mark.parametrize("recomputed", [True, False])
def test_the_difference_to_the_server_is_measured_for_all_tokens_and_for_the_current_version(
    tmp_path: Path, recomputed: bool
) -> None:
    policy = policy_of(save_tiny_model(tmp_path), recompute_logprob=recomputed, max_logprob_diff=1e6)
    policy.version = 3
    batch = pack([*random_trajectories(groups=1, version=3), *random_trajectories(groups=1, version=2)])
    trainer_T = policy.logprobs(batch)
    difference_T = (trainer_T - batch.behav_logp_T).abs()
    numbers = policy.update(batch, advantages_T=random_advantages(batch), prox_logp_T=trainer_T if recomputed else None)
    for name, where_T in (("", batch.loss_mask_T), ("_current", batch.versions_T == 3)):
        difference = difference_T[where_T]
        key = f"grpo_actor/rollout_logprob_diff{name}"
        assert numbers[f"{key}/avg"] == pytest.approx(float(difference.mean()), abs=1e-5)
        assert numbers[f"{key}/max"] == pytest.approx(float(difference.max()), abs=1e-5)


@pytest.mark.parametrize("recomputed", [True, False])
def test_a_large_difference_to_the_server_stops_before_the_weights_change(tmp_path: Path, recomputed: bool) -> None:
    policy = policy_of(save_tiny_model(tmp_path), max_logprob_diff=0.5, recompute_logprob=recomputed)
    batch = pack(random_trajectories())
    before = weights(policy)
    prox_logp_T = policy.logprobs(batch) if recomputed else None
    with pytest.raises(RuntimeError, match=r"above actor\.max_logprob_diff 0\.5"):
        policy.update(batch, advantages_T=random_advantages(batch), prox_logp_T=prox_logp_T)
    assert_same(weights(policy), before, 0)


def test_a_large_difference_on_stale_tokens_is_a_drift_of_the_policy_and_stops_nothing(tmp_path: Path) -> None:
    policy = policy_of(save_tiny_model(tmp_path), max_logprob_diff=0.5)
    policy.version = 7
    batch = pack(random_trajectories(version=6))
    found = policy.update(batch, advantages_T=random_advantages(batch))
    assert found["grpo_actor/rollout_logprob_diff/avg"] > 0.5


def test_logprobs_that_are_not_finite_stop_the_run(tmp_path: Path) -> None:
    policy = policy_of(save_tiny_model(tmp_path))
    policy.version = 7
    batch = pack(random_trajectories(version=6))
    batch.behav_logp_T[batch.loss_mask_T.nonzero()[0]] = float("nan")
    with pytest.raises(RuntimeError, match="not finite, on"):
        policy.update(batch, advantages_T=random_advantages(batch))


def test_sapo_replaces_clipping(tmp_path: Path) -> None:
    policy = policy_of(save_tiny_model(tmp_path), use_sapo_loss=True, max_logprob_diff=1e6, optimizer=SGD)
    batch = pack(random_trajectories())
    advantages_T, mask_T = random_advantages(batch), batch.loss_mask_T
    ratio = (policy.logprobs(batch) - batch.behav_logp_T)[mask_T].exp()
    tau = torch.where(advantages_T[mask_T] > 0, 1.0, 1.05)
    losses = -advantages_T[mask_T] * torch.sigmoid(tau * (ratio - 1)) * 4 / tau
    numbers = policy.update(batch, advantages_T=advantages_T)
    assert numbers["grpo_actor/actor_loss/avg"] == pytest.approx(float(losses.mean()), rel=1e-4)


def test_cispo_weighs_the_log_probs_with_the_clipped_ratio(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"use_cispo_loss": True, "eps_clip": 1.0, "eps_clip_higher": 0.1}
    policy = policy_of(save_tiny_model(tmp_path), max_logprob_diff=1e6, optimizer=SGD, **settings)
    batch = pack(random_trajectories())
    advantages_T, mask_T = random_advantages(batch), batch.loss_mask_T
    logp = policy.logprobs(batch)[mask_T]
    losses = -(logp - batch.behav_logp_T[mask_T]).exp().clamp(0, 1.1) * advantages_T[mask_T] * logp
    numbers = policy.update(batch, advantages_T=advantages_T)
    assert numbers["grpo_actor/actor_loss/avg"] == pytest.approx(float(losses.mean()), rel=1e-4)


def test_m2po_masks_the_tokens_with_the_largest_log_ratio(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path)
    batch = pack(random_trajectories())
    settings: dict[str, Any] = {"recompute_logprob": True, "max_logprob_diff": 1e6, "optimizer": SGD}
    loose, tight = policy_of(path, m2_threshold=1e9, **settings), policy_of(path, m2_threshold=0.2, **settings)
    plain = policy_of(path, **settings)
    prox_logp_T, advantages_T = plain.logprobs(batch), random_advantages(batch)
    shares = [
        policy.update(batch, advantages_T=advantages_T, prox_logp_T=prox_logp_T).get("grpo_actor/m2po_kept_tokens/avg")
        for policy in (loose, tight, plain)
    ]
    assert_same(weights(loose), weights(plain), 0)
    moments = (prox_logp_T - batch.behav_logp_T)[batch.loss_mask_T].square()
    kept = (moments.sort().values.cumsum(0) / torch.arange(1, len(moments) + 1) < 0.2).sum()
    assert kept < len(moments)
    assert shares == [1.0, pytest.approx(float(kept) / len(moments)), None]
    assert any(not torch.equal(a, b) for a, b in zip(weights(tight).values(), weights(plain).values(), strict=True))


def test_a_resumed_policy_is_bit_equal(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "model")
    optimizer = {"lr": 1e-2, "lr_scheduler_type": "cosine", "warmup_steps_proportion": 0.2}
    batch = pack(random_trajectories())
    whole, resumed = (policy_of(path, optimizer=optimizer) for _ in range(2))
    for step in range(4):
        if step == 2:
            copy_state(whole, resumed, tmp_path / "state")
        numbers = whole.update(batch, advantages_T=random_advantages(batch))
        if step >= 2:
            assert resumed.update(batch, advantages_T=random_advantages(batch)) == numbers
    assert_same(weights(whole), weights(resumed), 0)


def test_a_checkpoint_before_the_first_step_changes_nothing(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "model")
    batch = pack(random_trajectories())
    undisturbed, saved = policy_of(path), policy_of(path)
    resumed = policy_of(path)
    copy_state(saved, resumed, tmp_path / "state")
    for policy in (undisturbed, saved, resumed):
        policy.update(batch, advantages_T=random_advantages(batch))
    assert_same(weights(undisturbed), weights(saved), 0)
    assert_same(weights(undisturbed), weights(resumed), 0)


@pytest.mark.parametrize("tied", [True, False])
def test_the_saved_checkpoint_loads_in_transformers(tmp_path: Path, tied: bool) -> None:
    path = save_tiny_model(tmp_path / "model", tied=tied)
    trajectories = random_trajectories()
    batch = pack(trajectories)
    policy = policy_of(path)
    policy.update(batch, advantages_T=random_advantages(batch))
    policy.save_hf(tmp_path / "saved")
    model = plain_model(tmp_path / "saved")
    with torch.no_grad():
        expected = torch.cat([plain_logprobs(model, trajectory) for trajectory in trajectories])
    torch.testing.assert_close(policy.logprobs(batch), expected, atol=1e-5, rtol=0)
    assert (tmp_path / "saved" / "tokenizer.json").is_file()
    names = [name for name, _ in policy.named_full_tensors()]
    assert ("lm_head.weight" in names) is not tied


def test_a_saved_checkpoint_replaces_an_older_one_and_is_never_partial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of(save_tiny_model(tmp_path / "model"))
    saved = tmp_path / "checkpoints" / "epoch1step1"
    policy.save_hf(saved)
    (saved / "old").touch()
    monkeypatch.setattr("areal_trainer.model.policy.replace_directory", lambda *_: (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):  # noqa: PT011
        policy.save_hf(saved)
    assert (saved / "old").exists()
    monkeypatch.undo()
    policy.save_hf(saved)
    assert sorted(path.name for path in saved.parent.iterdir()) == ["epoch1step1"]
    assert not (saved / "old").exists()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in saved.iterdir()}
    (tmp_path / "plain").touch()
    assert modes == {stat.S_IMODE((tmp_path / "plain").stat().st_mode)}


def test_a_generation_config_that_transformers_refuses_to_save_is_kept(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "model")
    settings = {"do_sample": False, "temperature": 0.6, "top_p": 0.95, "num_return_sequences": 4, "eos_token_id": 1}
    (path / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="num_return_sequences"):
        GenerationConfig.from_pretrained(path).save_pretrained(tmp_path / "refused")
    policy = policy_of(path)
    policy.save_hf(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "generation_config.json").read_text()) == settings


def test_the_constant_learning_rate_warms_up_linearly() -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps_proportion=0.4)
    rates = [learning_rate(config, step=step, total_steps=10) for step in range(10)]
    assert rates == [0.25, 0.5, 0.75, 1.0, *[1.0] * 6]


def test_linear_and_cosine_learning_rates_decay_to_their_minimum() -> None:
    linear = OptimizerConfig(lr=1.0, lr_scheduler_type="linear", warmup_steps_proportion=0.0, min_lr_ratio=0.2)
    assert [learning_rate(linear, step=s, total_steps=4) for s in range(5)] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    cosine = OptimizerConfig(lr=2.0, lr_scheduler_type="cosine", warmup_steps_proportion=0.0)
    rates = [learning_rate(cosine, step=s, total_steps=4) for s in (0, 2, 4, 9)]
    assert rates == pytest.approx([2.0, 1.0, 0.0, 0.0])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_an_update_after_a_warm_up_is_bit_equal(tmp_path: Path, dropout: float) -> None:
    path = save_tiny_model(tmp_path, attention_dropout=dropout)
    batch = pack(random_trajectories())
    results = []
    for warm in (True, False):
        policy = policy_of(path)
        if warm:
            policy.warm_up(pack(random_trajectories(seed=7)))
        for _ in range(2):
            policy.update(batch, advantages_T=random_advantages(batch))
        results.append(weights(policy))
    assert_same(*results, 0)
