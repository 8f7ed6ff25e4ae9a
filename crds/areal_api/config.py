"""The configuration of a run: ``GRPOConfig`` and its sections, under AReaL's names.

Descriptions, units, bounds and defaults stand here once; the custom resource, ``--help`` and the documents are derived.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from areal_api.actor import PPOActorConfig, TrainEngineConfig
from areal_api.agent_config import AgentConfig
from areal_api.bounds import FreeForm
from areal_api.data_config import MAX_MIXED, DatasetConfig, MixedSet, RewardConfig, ValidDatasetConfig
from areal_api.evaluation import VALID, EvaluatorConfig, HeldOut
from areal_api.frequency import Frequency
from areal_api.generation import GenerationHyperparameters
from areal_api.loggers import StatsLoggerConfig
from areal_api.section import Section
from areal_api.tracing import TracingConfig

MAX_SEED = 2**31 - 1
NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
ASYNC_KL_PENALTY = 0.5  # the default of asynchronous training


class ClusterConfig(Section):
    """Where a run lives."""

    fileroot: str = Field(
        "runs", min_length=1, description="Directory under which every run has <experiment_name>/<trial_name>/."
    )
    n_nodes: int | None = Field(
        None,
        ge=1,
        description="Nodes of the cluster; with n_gpus_per_node, an allocation that needs more GPUs is refused.",
    )
    n_gpus_per_node: int | None = Field(
        None, ge=0, description="GPUs of a node; with n_nodes, an allocation that needs more GPUs is refused."
    )


class RolloutConfig(Section):
    """Asynchronous rollout: how many episodes run, and how far they may lag behind the weights."""

    max_concurrent_rollouts: int | None = Field(
        None,
        ge=1,
        description="Most episodes that run at a time; null is consumer_batch_size.",
        json_schema_extra={"unit": "episodes"},
    )
    queue_size: int | None = Field(
        None,
        ge=1,
        description="Most episodes that run or wait for the trainer: at least a batch, and more than "
        "max_head_offpolicyness − 1 batches; null sets no bound.",
        json_schema_extra={"unit": "episodes"},
    )
    consumer_batch_size: int | None = Field(
        None,
        ge=1,
        description="Episodes of a training step; null is train_dataset.batch_size.",
        json_schema_extra={"unit": "episodes"},
    )
    max_head_offpolicyness: int = Field(
        0,
        ge=0,
        description="Weight versions a sample may lag behind the step that trains on it (η); 0 is synchronous.",
        json_schema_extra={"unit": "versions"},
    )
    setup_timeout: float | None = Field(
        None,
        gt=0,
        description="Longest wait of the trainer for a ready server, at its start and whenever none is ready; null is "
        "7200 on cuda and 300 on cpu.",
        json_schema_extra={"unit": "s"},
    )
    weight_load_timeout: float | None = Field(
        None,
        gt=0,
        description="Longest time in which a server loads new weights from files; null is 1800 on cuda and 300 on cpu. "
        "A server that fails its health checks for that long is restarted.",
        json_schema_extra={"unit": "s"},
    )
    broadcast_timeout: float = Field(
        120.0,
        gt=0,
        description="Longest time in which all servers join a broadcast of weights, and in which they receive 512 MiB "
        "of it; after that it is aborted and the servers load files.",
        json_schema_extra={"unit": "s"},
    )
    request_timeout: float = Field(
        3600.0, gt=0, description="Longest wait for one request to a server.", json_schema_extra={"unit": "s"}
    )
    request_retries: int = Field(
        3, ge=1, description="Attempts of a request whose server failed, each on another server where there is one."
    )
    max_failed_episodes: int = Field(
        16,
        ge=0,
        description="Episodes in a row whose workflow failed before the run stops with the last error.",
        json_schema_extra={"unit": "episodes"},
    )
    max_rejected_batches: int = Field(
        20,
        ge=1,
        description=(
            "Batches' worth of episodes that the workflow or actor.dynamic_sampling may reject while one batch is "
            "collected, before the run stops."
        ),
        json_schema_extra={"unit": "batches"},
    )
    dump_to_file: bool = Field(
        False, description="Write the samples of every step to rollouts/ as Parquet (docs/rollouts.md)."
    )
    dump_max_bytes: int = Field(
        2 * 2**30,
        ge=2**20,
        le=2**50,
        description="Largest size of rollouts/; beyond it, the files of the oldest steps are deleted. Samples of one "
        "step that exceed it, or 1 GiB, in memory are left out and counted.",
        json_schema_extra={"unit": "bytes"},
    )
    agent: AgentConfig = Field(default_factory=AgentConfig, description="Agents and their session gateway.")


class SGLangConfig(Section):
    """Arguments of the SGLang servers; every key is a field of SGLang's ServerArgs. Others go into servers.args."""

    model_path: str | None = Field(None, description="Model that the servers load; null is actor.path.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="Type of the weights and activations."
    )
    context_length: int | None = Field(
        None, ge=1, description="Longest sequence; null is the model's own.", json_schema_extra={"unit": "tokens"}
    )
    mem_fraction_static: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of the device's memory for weights and KV cache; null is SGLang's choice, which depends on "
        "the GPU.",
    )
    max_running_requests: int | None = Field(
        None, ge=1, description="Most requests decoded together; null is SGLang's choice."
    )
    max_total_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens in the KV cache; null is by mem_fraction_static on cuda and 65536 on cpu.",
        json_schema_extra={"unit": "tokens"},
    )
    chunked_prefill_size: int | None = Field(
        None, ge=-1, description="Tokens per prefill chunk; −1 disables chunking.", json_schema_extra={"unit": "tokens"}
    )
    max_prefill_tokens: int | None = Field(
        None, ge=1, description="Most tokens of a prefill batch.", json_schema_extra={"unit": "tokens"}
    )
    attention_backend: str | None = Field(
        None, description="Attention kernels; null is SGLang's choice on cuda and our batched one on cpu."
    )
    sampling_backend: str | None = Field(None, description="Sampling kernels; null is SGLang's choice.")
    kv_cache_dtype: str | None = Field(None, description="Type of the KV cache; null is SGLang's choice.")
    random_seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="Seed of the servers; null is the run's seed plus the server's index."
    )
    skip_tokenizer_init: bool = Field(
        False, description="Run the server without a tokenizer: token ids in and out, no stop texts."
    )
    disable_radix_cache: bool = Field(False, description="Do not share the KV cache of common prefixes.")
    disable_cuda_graph: bool = Field(False, description="Do not capture CUDA graphs.")
    disable_overlap_schedule: bool = Field(False, description="Do not overlap the scheduler with the model.")
    disable_custom_all_reduce: bool = Field(False, description="Use NCCL's all-reduce.")
    enable_mixed_chunk: bool = Field(False, description="Mix prefill and decode in one batch.")
    schedule_policy: str | None = Field(None, description="Order of waiting requests; null is SGLang's choice.")
    schedule_conservativeness: float | None = Field(
        None, gt=0, description="Larger values admit fewer requests at a time."
    )
    cpu_offload_gb: int | None = Field(
        None, ge=0, description="Weights kept in host memory.", json_schema_extra={"unit": "GB"}
    )
    trust_remote_code: bool = Field(False, description="Allow model code from the hub.")
    enable_metrics: bool = Field(True, description="Serve Prometheus metrics at /metrics.")
    log_level: str = Field("info", description="Log level of the servers.")
    decode_log_interval: int | None = Field(None, ge=1, description="Decode steps between two log lines.")


class RecoverConfig(Frequency):
    """Recovery checkpoints, from which the same command resumes."""

    mode: Literal["auto", "disabled"] = Field(
        "auto", description="auto resumes from the last recovery checkpoint; disabled neither writes nor reads any."
    )
    freq_epochs: int | None = Field(1, ge=1, description="Every so many epochs.", json_schema_extra={"unit": "epochs"})
    freq_secs: float | None = Field(600.0, gt=0, description="Every so many seconds.", json_schema_extra={"unit": "s"})
    keep: int = Field(2, ge=1, description="Recovery checkpoints kept.")


class WorkflowConfig(Section):
    """How an episode runs."""

    path: str = Field(
        "areal_trainer.rollout.workflow:RLVRWorkflow",
        pattern=r"^(openenv:https?://\S+|verifiers:[\w./@-]+|[\w.]+:[\w.]+)$",
        description="Workflow or agent class, package.module:Class; or an environment: openenv:URL, verifiers:NAME.",
    )
    kwargs: FreeForm = Field(default_factory=dict, description="More keyword arguments of its constructor.")


class GRPOConfig(Section):
    """A GRPO run."""

    experiment_name: str = Field(
        min_length=1,
        pattern=NAME_PATTERN,
        description="Part of the run directory; metadata.name of an experiment file that leaves it out.",
    )
    trial_name: str = Field(
        "trial0",
        min_length=1,
        pattern=NAME_PATTERN,
        description="Name of this run of the experiment; a part of the run directory.",
    )
    seed: int = Field(1, ge=0, le=MAX_SEED, description="Seed of data order, sampling and initialisation.")
    total_train_epochs: int = Field(
        1, ge=1, description="Passes over train_dataset.", json_schema_extra={"unit": "epochs"}
    )
    total_train_steps: int | None = Field(
        None,
        ge=1,
        description="Stop after this many steps; null is all of total_train_epochs.",
        json_schema_extra={"unit": "steps"},
    )
    tokenizer_path: str | None = Field(None, description="Tokenizer; null is actor.path.")
    async_training: bool = Field(
        True, description="Generate for later steps while training; false waits for each batch."
    )
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="Where a run lives.")
    gconfig: GenerationHyperparameters = Field(
        default_factory=GenerationHyperparameters, description="Sampling in training."
    )
    eval_gconfig: GenerationHyperparameters | None = Field(
        None, description="Sampling in evaluation; null is gconfig with one sample at temperature 0.6."
    )
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="Asynchronous rollout.")
    actor: PPOActorConfig = Field(default_factory=PPOActorConfig, description="The policy and its update.")
    ref: TrainEngineConfig | None = Field(
        None, description="Reference model of the KL penalty; null is actor's model. Loaded only when actor.kl_ctl > 0."
    )
    sglang: SGLangConfig = Field(default_factory=SGLangConfig, description="SGLang servers.")
    train_dataset: DatasetConfig = Field(default_factory=DatasetConfig, description="Training problems.")
    train_mix: list[MixedSet] = Field(
        default_factory=list,
        max_length=MAX_MIXED,
        description="More training sets. An epoch has every row of train_dataset once, and of each set as many as its "
        "weight says, its rows in turn.",
    )
    valid_dataset: ValidDatasetConfig | None = Field(None, description="Held-out problems; null runs no evaluation.")
    reward: RewardConfig = Field(default_factory=RewardConfig, description="Reward function.")
    workflow: WorkflowConfig = Field(default_factory=WorkflowConfig, description="Workflow of an episode.")
    saver: Frequency = Field(
        default_factory=Frequency, description="Hugging Face checkpoints; the last step is always saved."
    )
    recover: RecoverConfig = Field(default_factory=RecoverConfig, description="Recovery checkpoints.")
    evaluator: EvaluatorConfig = Field(default_factory=EvaluatorConfig, description="Evaluation.")
    stats_logger: StatsLoggerConfig = Field(default_factory=StatsLoggerConfig, description="Loggers.")
    tracing: TracingConfig = Field(default_factory=TracingConfig, description="Traces and profiles.")

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if not self.actor.path:
            raise ValueError("actor.path is empty; set it to a Hugging Face model (hub name or directory)")
        if not self.train_dataset.path:
            raise ValueError("train_dataset.path is empty; set it to a data set (hub name, file or directory)")
        if self.ref is not None and not self.ref.path:
            raise ValueError(
                "ref.path is empty; set it to a Hugging Face model, or leave ref out for that of actor.path"
            )
        size = self.rollout.consumer_batch_size
        if size is not None and size != self.train_dataset.batch_size:
            raise ValueError(
                f"rollout.consumer_batch_size is {size}, train_dataset.batch_size {self.train_dataset.batch_size}; "
                "a step trains on one batch of prompts: make them equal or leave consumer_batch_size out"
            )
        untrainable = self.gconfig.untrainable()
        if untrainable:
            raise ValueError("; ".join(f"gconfig.{problem}" for problem in untrainable))
        if self.actor.temperature != self.gconfig.temperature:
            raise ValueError(
                f"actor.temperature is {self.actor.temperature}, gconfig.temperature {self.gconfig.temperature}; "
                "the trainer's log-probs must be those of the sampling distribution: make them equal"
            )
        overlong = self.actor.overlong_tokens
        if self.actor.overlong_reward_penalty and overlong is not None and overlong > self.gconfig.max_new_tokens:
            raise ValueError(
                f"actor.overlong_tokens is {overlong}, above gconfig.max_new_tokens {self.gconfig.max_new_tokens}; "
                "lower it"
            )
        if self.sglang.skip_tokenizer_init and self.gconfig.stop:
            raise ValueError(
                "gconfig.stop needs the server's tokenizer; set sglang.skip_tokenizer_init=false or use stop_token_ids"
            )
        if self.train_dataset.batch_size < self.actor.ppo_n_minibatches:
            raise ValueError(
                f"actor.ppo_n_minibatches is {self.actor.ppo_n_minibatches}, above train_dataset.batch_size "
                f"{self.train_dataset.batch_size}; lower it"
            )
        return self

    @model_validator(mode="after")
    def _agent_has_processes(self) -> Self:
        agent = self.rollout.agent
        if agent.python is not None and agent.mode != "subproc":
            raise ValueError(
                f"rollout.agent.python is {agent.python!r}, for agents in worker processes, but "
                f"rollout.agent.mode is {agent.mode}; set it to subproc"
            )
        return self

    @model_validator(mode="after")
    def _rollback_has_checkpoints(self) -> Self:
        recover = self.recover
        if self.actor.on_collapse != "rollback":
            return self
        if recover.mode == "disabled":
            raise ValueError(
                "actor.on_collapse is rollback, which needs recovery checkpoints, but recover.mode is disabled; set "
                "recover.mode=auto, or actor.on_collapse=stop"
            )
        if recover.freq_epochs is None and recover.freq_steps is None and recover.freq_secs is None:
            raise ValueError(
                "actor.on_collapse is rollback, which needs recovery checkpoints, but recover.freq_epochs, freq_steps "
                "and freq_secs are all null; set recover.freq_steps"
            )
        return self

    @model_validator(mode="after")
    def _mixed_sets_differ(self) -> Self:
        names = [one.name for one in self.train_mix]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise ValueError(f"train_mix: name {repeated!r} occurs twice; names must be unique, choose another")
        return self

    @model_validator(mode="after")
    def _evaluation_has_problems(self) -> Self:
        if self.valid_dataset is None and (self.evaluator.sets or self.evaluator.save_best):
            key = "evaluator.sets" if self.evaluator.sets else "evaluator.save_best"
            raise ValueError(
                f"{key} needs valid_dataset, whose reward decides which model is best; set valid_dataset.path"
            )
        return self

    @model_validator(mode="after")
    def _staleness_is_reachable(self) -> Self:
        size, batch = self.rollout.queue_size, self.consumer_batch_size
        if size is None:
            return self
        if size < batch:
            raise ValueError(
                f"rollout.queue_size is {size}, below a batch of {batch} episodes (train_dataset.batch_size), so no "
                "batch could ever complete; raise it or leave it out"
            )
        # Episodes that start while version v is held go to batch v + 1 + (size - 1) // batch at the latest.
        reachable = 1 + (size - 1) // batch
        if self.max_staleness > reachable:
            raise ValueError(
                f"rollout.max_head_offpolicyness is {self.max_staleness}, but with rollout.queue_size {size} and "
                f"batches of {batch} episodes (train_dataset.batch_size) no sample lags more than {reachable} "
                f"versions; raise rollout.queue_size to at least {(self.max_staleness - 1) * batch + 1}, lower "
                f"rollout.max_head_offpolicyness to {reachable}, or leave rollout.queue_size out"
            )
        return self

    @property
    def recovery_checkpoints(self) -> int:
        """Most recovery checkpoints kept: an older one is left for a rollback."""
        return self.recover.keep + (self.actor.on_collapse == "rollback")

    @property
    def consumer_batch_size(self) -> int:
        """Episodes of a training step."""
        return self.rollout.consumer_batch_size or self.train_dataset.batch_size

    @property
    def max_staleness(self) -> int:
        """η that is in force: 0 when training is synchronous."""
        return self.rollout.max_head_offpolicyness if self.async_training else 0

    @property
    def kl_penalty(self) -> float:
        """Resolved ``actor.correction.kl_penalty``."""
        penalty = self.actor.correction.kl_penalty
        if penalty is None:
            return ASYNC_KL_PENALTY if self.max_staleness > 0 else 0.0
        return penalty

    @property
    def evaluation(self) -> GenerationHyperparameters:
        """Sampling parameters in evaluation."""
        return self.eval_gconfig or self.gconfig.new(n_samples=1, temperature=0.6)

    @property
    def held_out(self) -> list[HeldOut]:
        """The data sets of an evaluation, ``valid_dataset`` first; empty without one."""
        if self.valid_dataset is None:
            return []
        found = [HeldOut(VALID, "valid_dataset", self.valid_dataset, self.reward, self.evaluation)]
        for index, one in enumerate(self.evaluator.sets):
            own = one.reward is not None or one.gconfig is not None
            reward, gconfig = one.reward or self.reward, one.gconfig or self.evaluation
            found.append(HeldOut(one.name, f"evaluator.sets[{index}].dataset", one.dataset, reward, gconfig, own))
        return found

    @property
    def tokenizer(self) -> str:
        """Hub name or directory of the tokenizer."""
        return self.tokenizer_path or self.actor.path
