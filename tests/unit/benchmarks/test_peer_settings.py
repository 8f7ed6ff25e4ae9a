"""The peers train as the benchmark's own runs do."""

from __future__ import annotations

from pathlib import Path

from areal_api.config import GRPOConfig
from benchmarks import areal_peer, trl_peer
from benchmarks.learning_runs import experiment, task_files
from benchmarks.peer import PeerTask


def ours(tmp_path: Path) -> tuple[PeerTask, GRPOConfig]:
    task = task_files("tiny", tmp_path)
    content = experiment(task, "areal", "eta2", seed=3, steps=25, run=tmp_path / "e" / "t")
    return PeerTask(task.model, task.data, steps=25, seed=3), GRPOConfig(**content["spec"]["config"])


def test_areal_trains_with_the_settings_of_our_runs(tmp_path: Path) -> None:
    task, config = ours(tmp_path)
    theirs = areal_peer.configuration(task, tmp_path)
    actor = theirs["actor"]
    optimizer = config.actor.optimizer.model_dump(include=set(actor["optimizer"]))
    # AReaL's warm-up is a share of all epochs, so only 0 means the same on both sides.
    assert optimizer == actor["optimizer"]
    assert optimizer["warmup_steps_proportion"] == 0.0
    same = ("path", "dtype", "ppo_n_minibatches", "eps_clip", "kl_ctl", "adv_norm", "use_decoupled_loss")
    assert {key: getattr(config.actor, key) for key in same} == {key: actor[key] for key in same}
    assert config.actor.behav_imp_weight_cap == actor["rejection_sampling"]["upper"]
    assert config.actor.reward_norm is not None
    levels = config.actor.reward_norm.model_dump(include={"mean_level", "std_level"})
    assert levels == {key: actor["reward_norm"][key] for key in levels}
    assert config.gconfig.model_dump(include=set(theirs["gconfig"])) == theirs["gconfig"]
    assert actor["reward_norm"]["group_size"] == config.gconfig.n_samples
    assert theirs["rollout"]["max_head_offpolicyness"] == config.max_staleness == 2
    assert theirs["rollout"]["max_concurrent_rollouts"] == config.rollout.max_concurrent_rollouts
    assert theirs["train_dataset"]["batch_size"] == config.train_dataset.batch_size
    assert (theirs["seed"], theirs["total_train_steps"]) == (config.seed, config.total_train_steps)


def test_trl_trains_with_the_settings_of_our_runs(tmp_path: Path) -> None:
    task, config = ours(tmp_path)
    theirs, optimizer = trl_peer.configuration(task), config.actor.optimizer
    assert theirs["num_generations"] == config.gconfig.n_samples
    assert theirs["per_device_train_batch_size"] == config.gconfig.n_samples * config.train_dataset.batch_size
    assert theirs["max_completion_length"] == config.gconfig.max_new_tokens
    assert theirs["temperature"] == config.gconfig.temperature
    assert (theirs["learning_rate"], theirs["lr_scheduler_type"]) == (optimizer.lr, optimizer.lr_scheduler_type)
    assert (theirs["adam_beta1"], theirs["adam_beta2"]) == (optimizer.beta1, optimizer.beta2)
    assert (theirs["weight_decay"], theirs["max_grad_norm"]) == (optimizer.weight_decay, optimizer.gradient_clipping)
    assert (theirs["epsilon"], theirs["beta"]) == (config.actor.eps_clip, config.actor.kl_ctl)
    assert (theirs["seed"], theirs["max_steps"]) == (config.seed, config.total_train_steps)
