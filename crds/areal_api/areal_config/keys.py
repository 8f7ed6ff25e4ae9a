"""Keys of AReaL's files, of three generations, that have no meaning here, with the reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class Foreign:
    """Why a key has no meaning here. If ``only`` is set, other values would change the run and are refused."""

    reason: str
    only: tuple[Any, ...] | None = None


def foreign(key: str) -> Foreign | None:
    """The entry of the dotted ``key`` (a section or a single value); None if it is not one of AReaL's keys."""
    for pattern, entry in _FOREIGN.items():
        if fnmatchcase(key, pattern):
            return entry
    return None


def is_areal_key(key: str) -> bool:
    """Whether ``key`` or a section above it is a key of AReaL that we lack."""
    parts = key.split(".")
    prefixes = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(prefix in TRANSLATED or foreign(prefix) is not None for prefix in prefixes)


# Keys that convert.py renames or moves.
TRANSLATED = frozenset(
    {
        "allocation_mode",
        "n_nodes",
        "n_gpus_per_node",
        "checkpointer",
        "rollout.backend",
        "actor.backend",
        "ref.backend",
        "actor.group_adv_norm",
        "actor.group_reward_norm",
        "actor.group_size",
        "actor.max_new_tokens",
        "actor.reward_norm.group_size",
        "actor.adv_norm.group_size",
        "actor.enable_icepop",
        "actor.icepop_alpha",
        "actor.icepop_beta",
        "actor.mb_spec.max_tokens_per_gpu",
        "ref.mb_spec.max_tokens_per_gpu",
        "rollout.openai",
        "rollout.agent.message_preprocessors",
        "actor.behave_imp_weight_cap",
        "actor.behave_imp_weight_mode",
        "actor.enable_kpop",
        "rollout.return_routed_experts",
        "actor.kpop_phi",
        "actor.rejection_sampling",
        "recover.retries",
        "recover.keep_last_n",
        "eval_workflow",
        "launcher",
        "rollout.scheduling_spec",
        "rollout.scheduling_specs",
        "actor.scheduling_spec",
        "actor.scheduling_specs",
    }
)

# Defaults of AReaL's dataclasses (areal/api/cli_args.py) that its files refer to without setting them.
AREAL_DEFAULTS: dict[str, Any] = {
    "seed": 1,
    "total_train_epochs": 1,
    "cluster.fileroot": "/tmp/areal/",
    "cluster.n_nodes": 1,
    "cluster.n_gpus_per_node": 8,
    "gconfig.n_samples": 1,
    "gconfig.max_new_tokens": 16384,
    "gconfig.max_tokens": 32768,
    "gconfig.min_new_tokens": 0,
    "gconfig.temperature": 1.0,
    "gconfig.top_p": 1.0,
    "actor.dtype": "bfloat16",
    "train_dataset.batch_size": 1,
}

# Arguments in AReaL's sglang section that our section lacks and SGLang 0.5.23 still has: moved to servers.args.
SGLANG_ARGUMENTS = frozenset(
    {
        "disable_cuda_graph_padding",
        "enable_nccl_nvls",
        "disable_outlines_disk_cache",
        "enable_dp_attention",
        "enable_torch_compile",
        "torch_compile_max_bs",
        "enable_p2p_check",
        "triton_attention_reduce_in_fp32",
        "triton_attention_num_kv_splits",
        "num_continuous_decode_steps",
        "enable_memory_saver",
        "allow_auto_truncate",
        "dp_size",
        "ep_size",
        "enable_lora",
        "max_lora_rank",
        "max_loaded_loras",
        "lora_paths",
        "lora_backend",
        "log_level_http",
        "log_requests",
        "log_requests_level",
        "show_time_cost",
        "load_format",
        "quantization",
        "enable_return_routed_experts",
    }
)

_ONE_NAME = "the run's name and directory apply to every section"
_PLACES = "set resources and placement in servers and trainer of the experiment"
_MEGATRON = "the trainer runs FSDP"
_NO_SUCH = "not supported here"
_LORA = "use actor.lora; servers get weights with the adapters merged"
_LOSS_SCALE = "no loss scaling: the trainer computes in bfloat16 or float32"
_FINDING = "servers have fixed addresses; there is no name service"
_NO_ARGUMENT = "SGLang 0.5.23 has no such argument"


def _table(
    groups: Iterable[tuple[str, tuple[Any, ...] | None, Iterable[str]]],
) -> dict[str, Foreign]:
    return {pattern: Foreign(reason, only) for reason, only, patterns in groups for pattern in patterns}


def _both(*keys: str) -> list[str]:
    return [f"{section}.{key}" for section in ("actor", "ref") for key in keys]


def _all(*keys: str) -> list[str]:
    sections = ("rollout", "actor", "ref", "saver", "recover", "evaluator", "stats_logger")
    return [f"{section}.{key}" for section in sections for key in keys]


_FOREIGN = _table(
    [
        (_ONE_NAME, None, _all("experiment_name", "trial_name", "fileroot")),
        (_FINDING, None, ["cluster.name_resolve"]),
        (
            _PLACES,
            None,
            [
                *("cluster.cluster_name", "cluster.gpu_type", "cluster.mount", "cluster.node_name_prefix"),
                *("cluster.gpu_image", "cluster.cpu_image", "cluster.gpu_infer_image", "scheduler"),
                *("*_dataset.scheduling_spec", "ref.scheduling_spec", "ref.scheduling_specs"),
            ],
        ),
        (
            "servers do not share GPUs with the trainer, and the reference model runs in the trainer's ranks",
            None,
            ["rollout.scheduling_strategy", *_both("scheduling_strategy")],
        ),
        ("a run has servers and a trainer", (False,), ["server_only"]),
        ("the servers are SGLang", None, ["vllm"]),
        ("servers and trainer use separate GPUs, so nothing is offloaded between them", None, ["enable_offload"]),
        ("timings of every stage are in stats.jsonl", None, ["perf_tracer"]),
        ("memory is not profiled", None, ["memory_profiler"]),
        (
            "only text is supported, so the model would not see the images of the data",
            (False, None),
            ["sglang.enable_multimodal"],
        ),
        ("no command runs after training", None, ["post_exit_hook"]),
        ("null is the default", None, ["critic", "teacher"]),
        ("rejected groups are replaced, so that every step trains on a whole batch", None, ["dynamic_bs"]),
        ("use total_train_steps", (None,), ["total_train_n_seqs"]),
        ("beam search gives no log-probs of samples", (False,), ["*gconfig.use_beam_search"]),
        (
            _LORA,
            None,
            [
                "*gconfig.lora_name",
                "sglang.lora_*",
                *_both("lora_rank", "lora_alpha", "target_modules", "peft_type"),
            ],
        ),
        ("adapters have no dropout", (0, None), _both("lora_dropout")),
        (_LORA, (False,), _both("use_lora", "use_merged_lora")),
        (_LORA, None, ["rollout.use_lora"]),
        (_LORA, ("", None), _both("init_lora_path")),
        ("requests are logged at debug level", None, ["rollout.enable_rollout_tracing"]),
        ("trajectories are always checked", None, ["rollout.check_trajectory_format"]),
        ("prompts go to the least loaded server", None, ["rollout.schedule_policy"]),
        ("the run's tokenizer is used", None, ["rollout.tokenizer_path"]),
        (
            "running requests are interrupted at a weight update",
            None,
            ["rollout.pause_grace_period", "rollout.pause_generation_clearance_period"],
        ),
        ("agents always use the gateway", None, ["rollout.use_gateway"]),
        ("a history keeps the tokens that the model generated", None, ["rollout.agent.chat_template_type"]),
        ("use gconfig.max_tokens", (None,), ["rollout.agent.engine_max_tokens"]),
        ("the gateway's key is random", None, ["rollout.agent.admin_api_key"]),
        ("set variables in servers.env and trainer.env", ({}, None), ["env_vars"]),
        (
            "AReaL's controllers are not used",
            None,
            [
                *("rollout._version", "rollout.admin_api_key"),
                *_both("_version", "admin_api_key", "log_level", "request_timeout", "setup_timeout"),
            ],
        ),
        ("training starts from actor.path", (False,), _both("init_from_scratch", "init_critic_from_actor")),
        ("the policy is not a critic", None, _both("is_critic")),
        ("Hugging Face kernels are not used", None, _both("use_kernels")),
        (
            "no heads for multi-token prediction are trained, so the servers do not speculate",
            None,
            [
                *_both("enable_mtp_training", "mtp_*"),
                *("actor.optimizer.mtp_lr_scale", "sglang.speculative_*", "sglang.enable_draft_weights_cpu_backup"),
            ],
        ),
        ("microbatches are packed without padding", None, _both("pad_to_maximum")),
        ("gradients are reduced in float32", ("float32",), _both("grad_reduce_dtype")),
        ("use actor.fsdp.offload_params", (False,), _both("offload")),
        (_MEGATRON, None, _both("megatron", "archon", "mindspeed")),
        (_MEGATRON + ", which shards the model over all ranks", None, _both("fsdp.ulysses_sp_size")),
        (
            "every decoder layer is one FSDP unit",
            None,
            _both("fsdp.wrap_policy", "fsdp.shard_vision_across_sp"),
        ),
        ("every rank reads its part of the model", None, _both("fsdp.memory_efficient_load")),
        ("optimizer steps are not streamed", (False,), _both("fsdp.per_layer_optim_step")),
        ("optimizer steps are not streamed", None, _both("fsdp.optim_step_prefetch_layers")),
        (
            "samples of one prompt always share its computation",
            None,
            _both("enable_tree_training", "adaptive_tree", "tree_training_mode", "packing_algorithm", "dta_block_size"),
        ),
        (
            _LOSS_SCALE,
            None,
            [f"actor.optimizer.{key}" for key in ("initial_loss_scale", "min_loss_scale", "loss_scale_window")]
            + ["actor.optimizer.hysteresis"],
        ),
        (
            "the gradient does not depend on the split into microbatches",
            None,
            _both("mb_spec.granularity", "mb_spec.n_mbs_divisor", "mb_spec.packing_algorithm"),
        ),
        (
            "log-probs of the proximal policy are recomputed, not approximated",
            None,
            [
                *("actor.prox_logp_method", "actor.use_prox_approx", "actor.prox_approx_method"),
                "actor.log_prox_approx_metrics",
            ],
        ),
        ("every update publishes all weights", None, ["actor.enable_delta_weight_update"]),
        ("every update publishes all weights", None, ["actor.weight_update_delta_*", "actor.weight_update_anchor_*"]),
        ("use rollout.setup_timeout", None, ["rollout.workers_ready_timeout"]),
        ("statistics of every step are in stats.jsonl", None, ["actor.log_agent_stats", "actor.log_agent_stats_keys"]),
        ("advantages are those of GAE over tokens", ("gae",), ["actor.advantage_estimator"]),
        ("advantages are those of GAE over tokens", ("token",), ["actor.gae_timestep_unit"]),
        ("advantages are those of GAE over tokens", (1.0,), ["actor.turn_discount"]),
        ("use reward_norm", (None,), ["actor.group_baseline"]),
        ("use reward_norm", None, ["actor.group_baseline_leave1out"]),
        ("gae_lambda is a number", ({}, None), ["actor.gae_lambda_kwargs"]),
        ("rewards are those of whole sequences", None, ["actor.token_rewards_as_adv"]),
        ("a lost sample does not affect the rest of its group", (None,), ["actor.min_usable_group_size"]),
        ("adaptive entropy (AEnt) is " + _NO_SUCH, (None,), ["actor.aent"]),
        ("data stay in host memory until a batch is packed", None, ["*_dataset.pin_memory"]),
        ("data are read in the trainer", None, ["*_dataset.num_dataset_workers"]),
        ("use an import path (package.module:function) as *_dataset.path", ({}, None), ["*_dataset.dataset_kwargs"]),
        ("checkpoints are written by the trainer, whole or not at all", None, ["saver.mode"]),
        ("evaluation always runs before the first step", None, ["evaluator.eval_before_train"]),
        ("recovery checkpoints hold the optimizer", None, ["recover.no_save_optim", "recover.no_load_optim"]),
        ("set the reward function in reward.path", None, ["*_dataset.reward_fn"]),
        ("use dynamic_sampling", ("none", None), ["actor.dynamic_sampling_strategy"]),
        ("use mb_spec.max_tokens_per_mb", None, ["actor.context_length"]),
        ("a session stays on its server", None, ["rollout.routing_strategy"]),
        (
            "a history is recognised by its messages",
            None,
            ["rollout.agent.prefix_matcher", "rollout.agent.drop_retry_orphans"],
        ),
        (
            "keys are read from the environment only (WANDB_API_KEY, WANDB_BASE_URL, SWANLAB_API_KEY)",
            None,
            ["stats_logger.wandb.wandb_api_key", "stats_logger.wandb.wandb_base_url", "stats_logger.swanlab.api_key"],
        ),
        (
            "the logger receives the whole configuration",
            None,
            ["stats_logger.wandb.config", "stats_logger.swanlab.config"],
        ),
        ("not passed to wandb", None, ["stats_logger.wandb.job_type", "stats_logger.wandb.id_suffix"]),
        (
            _NO_ARGUMENT,
            None,
            [f"sglang.{key}" for key in ("enable_ep_moe", "torchao_config", "enable_nan_detection", "cuda_graph_bs")]
            + ["sglang.cuda_graph_max_bs", "sglang.enable_multithread_load"],
        ),
    ]
)
