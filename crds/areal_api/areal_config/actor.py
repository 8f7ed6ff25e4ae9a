"""Converts ``actor`` of AReaL's files: normalisation, correction of stale samples, and defaults of each generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from areal_api.actor import MAX_BFLOAT16_BETA
from areal_api.areal_config.rejection import convert_rejection
from areal_api.areal_config.tree import Notes, Tree, get, pop, set_in
from areal_api.errors import ConfigError, shown

_SERVER_LORA = ("enable_lora", "max_lora_rank", "max_loaded_loras", "max_loras_per_batch", "lora_backend", "lora_paths")
_DEFAULTS = {"actor.reward_scaling": 1.0, "actor.reward_bias": 0.0}  # AReaL's defaults


def actor_steps(config: Tree, notes: Notes, *, generation: str) -> list[Callable[[], None]]:
    """The steps that translate ``config["actor"]`` in place. Each may raise ``ConfigError``; the others still work."""
    return [
        lambda: _convert_norms(config, notes, generation=generation),
        lambda: _convert_cap(config, notes, generation=generation),
        lambda: _convert_sizes(config, notes),
        lambda: _convert_engine(config, notes),
        lambda: _convert_lora(config, notes),
        lambda: _convert_replay(config, notes),
        lambda: _convert_defaults(config, notes),
    ]


def _convert_replay(config: Tree, notes: Notes) -> None:
    key = "rollout.return_routed_experts"
    value = pop(config, key)
    if value is None:
        return
    if not isinstance(value, bool):
        raise ConfigError(f"{key} is {shown(value)}; set it to true or false")
    set_in(config, "actor.router_replay", value)
    notes.add(key, "becomes actor.router_replay")


def _convert_defaults(config: Tree, notes: Notes) -> None:
    mode = get(config, "actor.weight_update_mode")
    if mode in ("xccl", "nccl", "awex", "tensor"):
        set_in(config, "actor.weight_update_mode", "distributed")
        notes.add("actor.weight_update_mode", f"{mode} becomes distributed: the weights are broadcast")
    for key, value in _DEFAULTS.items():
        if get(config, key) is None:
            _fill(config, key, value, notes)
    _convert_kl(config, notes)
    stale = get(config, "async_training", True) and get(config, "rollout.max_head_offpolicyness", 0)
    if stale and get(config, "actor.correction.kl_penalty") is None:
        notes.add(
            "actor.correction.kl_penalty",
            "missing; asynchronous training penalises the KL from the behaviour policy, AReaL does not: set it to 0 "
            "for AReaL's update",
        )
    temperature = get(config, "gconfig.temperature", 1.0)
    if get(config, "actor.temperature") is None and temperature != 1.0:
        set_in(config, "actor.temperature", temperature)
        notes.add(
            "actor.temperature",
            f"missing; set to {temperature} as in gconfig (AReaL would use 1.0, which does not match)",
        )


def _fill(config: Tree, key: str, value: Any, notes: Notes) -> None:
    set_in(config, key, value)
    text = "null" if value is None else value
    notes.add(key, f"missing; set to AReaL's default {text}, which differs from ours")


def _convert_norms(config: Tree, notes: Notes, *, generation: str) -> None:
    by_group = pop(config, "actor.group_adv_norm")
    switch = get(config, "actor.adv_norm")
    if isinstance(switch, bool) or by_group is not None or (generation == "lite" and switch is None):
        on = switch is not False
        level = "group" if by_group else "batch"
        if isinstance(switch, dict):
            level_text = "actor.adv_norm takes precedence"
        else:
            set_in(config, "actor.adv_norm", {"mean_level": level, "std_level": level} if on else None)
            level_text = (
                f"becomes adv_norm {{mean_level: {level}, std_level: {level}}}" if on else "becomes adv_norm: null"
            )
        for key, present in (("group_adv_norm", by_group is not None), ("adv_norm", not isinstance(switch, dict))):
            if present:
                notes.add(f"actor.{key}", level_text)
    for key in ("reward_norm.mean_level", "reward_norm.std_level", "adv_norm.mean_level", "adv_norm.std_level"):
        if str(get(config, f"actor.{key}")).lower() == "none" and get(config, f"actor.{key}", ...) is not ...:
            set_in(config, f"actor.{key}", None)  # AReaL treats the text none as null
    by_group = pop(config, "actor.group_reward_norm")
    if by_group is not None:
        if by_group and get(config, "actor.reward_norm") is None:
            set_in(config, "actor.reward_norm", {"mean_level": "group", "std_level": "group"})
        notes.add("actor.group_reward_norm", "becomes actor.reward_norm")


def _convert_cap(config: Tree, notes: Notes, *, generation: str) -> None:
    """How the decoupled loss corrects for stale samples: importance weights up to a cap, or none at all."""
    cap_key = "actor.behav_imp_weight_cap"
    if get(config, "actor.behave_imp_weight_cap", ...) is not ...:
        set_in(config, cap_key, pop(config, "actor.behave_imp_weight_cap"))
        notes.add("actor.behave_imp_weight_cap", "becomes behav_imp_weight_cap")
    if get(config, "actor.behave_imp_weight_mode") == "disabled":
        pop(config, "actor.behave_imp_weight_mode")
        _without_weights(config, "actor.behave_imp_weight_mode", notes)
    found = convert_rejection(config, notes)
    if not found and get(config, cap_key, ...) is ... and get(config, "actor.use_decoupled_loss"):
        if generation == "lite":
            _fill(config, cap_key, None, notes)
        elif generation == "1.0":
            _without_weights(config, "actor.rejection_sampling", notes)


def _without_weights(config: Tree, key: str, notes: Notes) -> None:
    """AReaL clips against the recomputed log-probs and applies no importance weight (``ppo_actor_loss_fn``)."""
    if not get(config, "actor.use_decoupled_loss"):
        return
    set_in(config, "actor.use_decoupled_loss", False)
    set_in(config, "actor.recompute_logprob", True)
    notes.add(
        key,
        "without it AReaL's decoupled loss has no importance weights: use_decoupled_loss becomes false and "
        "recompute_logprob true, which is the same loss",
    )


def _convert_sizes(config: Tree, notes: Notes) -> None:
    """Drop keys that repeat a number of gconfig; refuse a different number."""
    problems: list[str] = []
    samples, length = get(config, "gconfig.n_samples", 1), get(config, "gconfig.max_new_tokens", 16384)
    group = get(config, "actor.group_size") or get(config, "actor.reward_norm.group_size")
    if samples == 1 and isinstance(group, int) and group > 1:
        set_in(config, "gconfig.n_samples", samples := group)
        notes.add(
            "gconfig.n_samples",
            f"raised from 1 to the group size {group}: the trainer samples each prompt so often, not the workflow",
        )
    for key, expected, name in (
        ("actor.group_size", samples, "gconfig.n_samples"),
        ("actor.reward_norm.group_size", samples, "gconfig.n_samples"),
        ("actor.adv_norm.group_size", samples, "gconfig.n_samples"),
        ("actor.max_new_tokens", length, "gconfig.max_new_tokens"),
    ):
        value = pop(config, key)
        if value is None:
            continue
        if value == 1 and key == "actor.group_size" and not _by_group(config):
            notes.add(key, "has no effect: nothing is normalised by groups")
            continue
        if value != expected:
            problems.append(f"{key} is {value}, {name} {expected}; they are one setting here: make them equal")
        notes.add(key, f"becomes {name}")
    if problems:
        raise ConfigError("; ".join(problems))


def _by_group(config: Tree) -> bool:
    norms = [get(config, f"actor.{norm}") for norm in ("reward_norm", "adv_norm")]
    return any("group" in norm.values() for norm in norms if isinstance(norm, dict))


def _convert_engine(config: Tree, notes: Notes) -> None:
    """Earlier names, and optimizers that differ only in how they store their state."""
    for section in ("actor", "ref"):
        tokens = pop(config, f"{section}.mb_spec.max_tokens_per_gpu")
        if tokens is not None:
            set_in(config, f"{section}.mb_spec.max_tokens_per_mb", tokens)
            notes.add(f"{section}.mb_spec.max_tokens_per_gpu", "becomes max_tokens_per_mb")
        kernel = get(config, f"{section}.attn_impl")
        if isinstance(kernel, str) and kernel.startswith("kernels-community/"):
            pop(config, f"{section}.attn_impl")
            notes.add(f"{section}.attn_impl", f"{kernel} is not used; the default is")
    if get(config, "actor.optimizer.type") == "adam_bf16":
        set_in(config, "actor.optimizer.type", "adam")
        dtype = "float32" if get(config, "actor.optimizer.beta2", 0.999) > MAX_BFLOAT16_BETA else "bfloat16"
        set_in(config, "actor.optimizer.state_dtype", dtype)
        why = "" if dtype == "bfloat16" else f", because bfloat16 needs a beta2 of at most {MAX_BFLOAT16_BETA}"
        notes.add("actor.optimizer.type", f"adam_bf16 becomes adam with state_dtype {dtype}{why}")


def _convert_lora(config: Tree, notes: Notes) -> None:
    """AReaL's servers load adapters; ours get weights with the adapters merged."""
    if get(config, "actor.use_lora") is not True:
        return
    pop(config, "actor.use_lora")
    kind = pop(config, "actor.peft_type")
    if kind not in ("lora", None):
        raise ConfigError(f"actor.peft_type is {shown(kind)}; lora is the only kind of adapters here")
    keys = {"rank": ("lora_rank", 32), "alpha": ("lora_alpha", 16), "target_modules": ("target_modules", [])}
    for key, (old, default) in keys.items():
        value = pop(config, f"actor.{old}")
        value = default if value is None else value
        set_in(config, f"actor.lora.{key}", ["all-linear"] if value == [] else value)
    notes.add("actor.use_lora, actor.lora_rank, actor.lora_alpha, actor.target_modules", "become actor.lora")
    for key in _SERVER_LORA:
        if pop(config, f"sglang.{key}") is not None:
            notes.add(f"sglang.{key}", "servers get weights with the adapters merged")


def _convert_kl(config: Tree, notes: Notes) -> None:
    """Without a ref section AReaL applies no KL penalty, even with kl_ctl; with one, kl_ctl defaults to 0.1."""
    weight, has_ref = get(config, "actor.kl_ctl"), isinstance(config.get("ref"), dict)
    if weight is None and has_ref:
        _fill(config, "actor.kl_ctl", 0.1, notes)
    elif weight and not has_ref:
        set_in(config, "actor.kl_ctl", 0.0)
        notes.add("actor.kl_ctl", f"changed from {weight} to 0.0: AReaL applies no penalty without a ref section")
