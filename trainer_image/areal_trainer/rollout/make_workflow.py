"""Constructs the configured workflows: a workflow class, or an agent behind the session gateway."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerBase

from areal_api import names
from areal_api.config import GRPOConfig, WorkflowConfig
from areal_api.evaluation import HeldOut
from areal_trainer import environments
from areal_trainer.gateway.preprocessing import Preprocessing
from areal_trainer.gateway.settings import GatewaySettings, new_key
from areal_trainer.import_path import load_object
from areal_trainer.reward.weighted import Reward
from areal_trainer.rollout.agent_pool import PooledAgent
from areal_trainer.rollout.agent_workflow import (
    Agent,
    AgentRunner,
    AgentWorkflow,
    OnlineWorkflow,
    is_agent,
    make_agent,
)
from areal_trainer.rollout.gateway_process import GatewayProcess
from areal_trainer.rollout.workflow import GenerationEngine, RewardFn, RolloutWorkflow, load_workflow, with_stop_tokens

# The class that plays the environment "<kind>:<name>" at workflow.path, and the name of its argument <name>.
ENVIRONMENTS = {
    "openenv": ("areal_trainer.environments.openenv_agent:OpenEnvAgent", "url"),
    "verifiers": ("areal_trainer.environments.verifiers_agent:VerifiersAgent", "taskset"),
}


class Workflows:
    """The workflows of training and evaluation, and the gateway if they run an agent."""

    def __init__(
        self, config: GRPOConfig, engine: GenerationEngine, tokenizer: PreTrainedTokenizerBase, reward: Reward
    ) -> None:
        """``engine`` generates for an agent. Raises ``ValueError`` for a class that cannot be used."""
        self.gateway: GatewayProcess | None = None
        self._runner: AgentRunner | None = None
        self._load: Callable[..., RolloutWorkflow] | None = None  # constructs a workflow class; None for agents
        self.training: RolloutWorkflow
        self.evaluation: RolloutWorkflow
        if config.rollout.agent.mode == "online":
            _refuse_terms(config)
            self._build_online(config, engine, tokenizer)
            return
        path, kwargs = agent_class(config.workflow)
        if config.rollout.agent.mode == "subproc":
            _refuse_terms(config)
            template_kwargs = kwargs.pop("chat_template_kwargs", None) or {}
            pooled = PooledAgent(path=worker_path(path), kwargs=kwargs, config=config.rollout.agent)
            self._build_agent(config, engine, tokenizer, pooled, template_kwargs).start(pooled)
            return
        loaded = load_object(path, field="workflow.path")
        if is_agent(loaded):
            _refuse_terms(config)
            template_kwargs = kwargs.pop("chat_template_kwargs", None) or {}
            agent = make_agent(loaded, path=path, kwargs=kwargs)
            self._build_agent(config, engine, tokenizer, agent, template_kwargs)
            return
        self._load = partial(load_workflow, path, **{"tokenizer": tokenizer, **kwargs})
        self.training = self._load(gconfig=config.gconfig, reward_fn=reward.score)
        self.evaluation = self._load(gconfig=config.evaluation, reward_fn=reward.score)

    def _build_agent(
        self,
        config: GRPOConfig,
        engine: GenerationEngine,
        tokenizer: PreTrainedTokenizerBase,
        agent: Agent,
        template_kwargs: dict[str, Any],
    ) -> AgentRunner:
        self.gateway = GatewayProcess(engine, gateway_settings(config, tokenizer, template_kwargs))
        self._runner = AgentRunner(self.gateway, timeout_s=config.rollout.agent.session_timeout_seconds)
        self.training = AgentWorkflow(agent, self._runner, n_samples=config.gconfig.n_samples, evaluation=False)
        self.evaluation = AgentWorkflow(agent, self._runner, n_samples=config.evaluation.n_samples, evaluation=True)
        return self._runner

    def _build_online(self, config: GRPOConfig, engine: GenerationEngine, tokenizer: PreTrainedTokenizerBase) -> None:
        if config.valid_dataset is not None:
            raise ValueError(
                "rollout.agent.mode is online and valid_dataset is set, but there is no agent to evaluate; leave "
                "valid_dataset out"
            )
        kwargs = config.workflow.kwargs.get("chat_template_kwargs") or {}
        self.gateway = GatewayProcess(
            engine, gateway_settings(config, tokenizer, kwargs), address_file=names.gateway_file(names.run_dir(config))
        )
        self.training = self.evaluation = OnlineWorkflow(self.gateway, n_samples=config.gconfig.n_samples)

    def evaluation_on(self, held_out: HeldOut, reward_fn: RewardFn) -> RolloutWorkflow:
        """The workflow that evaluates on a held-out set. Raises ``ValueError`` for settings that an agent overrides."""
        if not held_out.has_own_settings:
            return self.evaluation
        if self._load is None:
            raise ValueError(
                f"{held_out.key} is in a set with a reward or gconfig, but workflow.path is an agent, which computes "
                "its own reward and samples with eval_gconfig; leave them out"
            )
        return self._load(gconfig=held_out.gconfig, reward_fn=reward_fn)

    def statistics(self) -> dict[str, float]:
        """Statistics of agents since the last call; empty without a gateway."""
        return {} if self.gateway is None else self.gateway.take_statistics()

    def start(self) -> None:
        """Start the gateway, if there is one, without waiting for it."""
        if self.gateway is not None:
            self.gateway.start()

    def close(self) -> None:
        """End agents and gateway. The engine must be running."""
        if self._runner is not None:
            self._runner.close()
        if self.gateway is not None:
            self.gateway.close()


def _refuse_terms(config: GRPOConfig) -> None:
    if config.reward.terms:
        raise ValueError(
            "reward.terms is set, but the episodes are an agent's, which computes its own reward; leave it out and "
            "combine the terms in the agent"
        )


def agent_class(workflow: WorkflowConfig) -> tuple[str, dict[str, Any]]:
    """Import path and constructor arguments of the class at ``workflow.path``."""
    kind, _, name = workflow.path.partition(":")
    if kind not in ENVIRONMENTS:
        return workflow.path, dict(workflow.kwargs)
    path, argument = ENVIRONMENTS[kind]
    return path, {argument: name, **workflow.kwargs}


def worker_path(path: str) -> str:
    """The path for a worker process in another Python environment: a file, as it has no module of this project."""
    module, _, name = path.partition(":")
    if path not in (environment for environment, _ in ENVIRONMENTS.values()):
        return path
    return f"{Path(environments.__file__).with_name(module.rpartition('.')[2])}.py:{name}"


def gateway_settings(
    config: GRPOConfig, tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: dict[str, Any]
) -> GatewaySettings:
    """The settings of the gateway's process. Raises ``ValueError`` for message preprocessors that cannot be used."""
    Preprocessing(config.rollout.agent.message_preprocessors)
    host, port = _address(config)
    return GatewaySettings(
        tokenizer=config.tokenizer,
        model=config.actor.path,
        gconfig=with_stop_tokens(config.gconfig, tokenizer),
        eval_gconfig=with_stop_tokens(config.evaluation, tokenizer),
        agent=config.rollout.agent,
        chat_template_kwargs=chat_template_kwargs,
        admin_key=_admin_key(),
        host=host,
        port=port,
    )


def _address(config: GRPOConfig) -> tuple[str, int]:
    """Where the gateway listens: on the pod's address in online mode in a cluster, else as the configuration says."""
    host, _, port = os.environ.get(names.GATEWAY_ADDRESS, "").rpartition(":")
    agent = config.rollout.agent
    return (host, int(port)) if host and agent.mode == "online" else (agent.host, agent.port)


def _admin_key() -> str:
    path = os.environ.get(names.GATEWAY_KEY_FILE)
    return Path(path).read_text().strip() if path else new_key()


def vocabulary_size(model: str) -> int:
    """Size of the model's vocabulary; SGLang pads the embedding beyond it and crashes on larger ids."""
    return int(AutoConfig.from_pretrained(model).get_text_config().vocab_size)
