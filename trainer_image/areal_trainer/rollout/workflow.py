"""What an episode does: ask the model about one row of data, and make trajectories of the answers."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from areal_api.generation import GenerationHyperparameters
from areal_trainer.rollout.generation import ModelRequest, ModelResponse
from areal_trainer.rollout.recording import Recording
from areal_trainer.trajectory import Trajectory

RewardFn = Callable[..., float | Awaitable[float]]
Score = Callable[..., Awaitable[float]]
_NOT_FOR_REWARD = frozenset({"messages", "prompt", "input_ids"})


class GenerationEngine(Protocol):
    """What a workflow needs of the engine."""

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        """One completion."""
        ...

    async def agenerate_n(self, request: ModelRequest, n: int) -> list[ModelResponse]:
        """Several completions of one prompt, from one server."""
        ...


class RolloutWorkflow(ABC):
    """One object serves all episodes, which run side by side on one event loop: keep an episode's state in locals."""

    @abstractmethod
    async def arun_episode(self, engine: GenerationEngine, data: dict[str, Any]) -> list[Trajectory] | None:
        """Run one episode on the row ``data``. None, or no trajectory, rejects it: another one takes its place."""


class RLVRWorkflow(RolloutWorkflow):
    """Ask once, take ``gconfig.n_samples`` answers, let the reward function judge each.

    A row has ``messages`` (roles and contents) or ``prompt`` (plain text); the other columns go to the reward function,
    which is called as ``reward_fn(prompt, completions, prompt_ids, completion_ids, **columns)``, sync or async. With
    ``score``, it is ``score(reward_fn, …)`` that is awaited: a pool of processes that calls it there.
    """

    def __init__(
        self,
        reward_fn: RewardFn | str,
        gconfig: GenerationHyperparameters,
        tokenizer: Any,
        *,
        score: Score | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if score is None and isinstance(reward_fn, str):
            reward_fn = load_attribute(reward_fn, what="reward.path")
        self.reward_fn = reward_fn
        self.gconfig = with_stop_tokens(gconfig, tokenizer)
        self.tokenizer = tokenizer
        self._score = score
        self._chat_template_kwargs = chat_template_kwargs or {}

    async def arun_episode(self, engine: GenerationEngine, data: dict[str, Any]) -> list[Trajectory] | None:
        """One trajectory a sample."""
        prompt, prompt_ids = self.tokenize(data)
        request = ModelRequest(input_ids=prompt_ids, gconfig=self.gconfig)
        responses = await engine.agenerate_n(request, self.gconfig.n_samples)
        completions = [
            self.tokenizer.decode(response.output_tokens, skip_special_tokens=self.gconfig.skip_special_tokens)
            for response in responses
        ]
        rewards = await self._rewards(data, prompt, prompt_ids, completions, responses)
        task_id = task_id_of(data)
        trajectories = []
        for response, completion, reward in zip(responses, completions, rewards, strict=True):
            recording = Recording(prompt_ids)
            recording.made(response)
            trajectories.append(
                recording.trajectory(reward=reward, prompt=prompt, completion=completion, task_id=task_id)
            )
        return trajectories

    def tokenize(self, data: dict[str, Any]) -> tuple[str, list[int]]:
        """The prompt as text and as token ids."""
        messages = data.get("messages")
        if messages is not None:
            prompt = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **self._chat_template_kwargs
            )
            # The template has put the special tokens in already.
            return prompt, self.tokenizer.encode(prompt, add_special_tokens=False)
        if "prompt" not in data:
            raise ValueError(
                f"a row has neither 'messages' nor 'prompt', only {sorted(data)}; "
                "set train_dataset.question_column, or give rows with one of the two"
            )
        return data["prompt"], self.tokenizer.encode(data["prompt"])

    async def _rewards(
        self,
        data: dict[str, Any],
        prompt: str,
        prompt_ids: list[int],
        completions: list[str],
        responses: list[ModelResponse],
    ) -> list[float]:
        columns = {name: value for name, value in data.items() if name not in _NOT_FOR_REWARD}
        if self._score is not None:
            calls = [
                self._score(self.reward_fn, prompt, completion, prompt_ids, response.output_tokens, **columns)
                for completion, response in zip(completions, responses, strict=True)
            ]
            return [float(reward) for reward in await asyncio.gather(*calls)]
        assert not isinstance(self.reward_fn, str)
        rewards = []
        for completion, response in zip(completions, responses, strict=True):
            reward = self.reward_fn(prompt, completion, prompt_ids, response.output_tokens, **columns)
            rewards.append(float(await reward if inspect.isawaitable(reward) else reward))
        return rewards


def with_stop_tokens(gconfig: GenerationHyperparameters, tokenizer: Any) -> GenerationHyperparameters:
    """``gconfig`` that also stops at the tokenizer's end-of-text and padding ids."""
    if gconfig.ignore_eos:
        return gconfig
    ids = {*gconfig.stop_token_ids, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
    return gconfig.new(stop_token_ids=sorted(ids))


def task_id_of(data: dict[str, Any]) -> str:
    """The row's own name, where it has one."""
    return str(data.get("task_id", data.get("id", "")))


def load_workflow(path: str, /, **arguments: Any) -> RolloutWorkflow:
    """The workflow ``package.module:Class``, constructed with ``arguments``; ``ValueError`` says what is wrong."""
    found = load_attribute(path, what="workflow.path")
    if not (inspect.isclass(found) and issubclass(found, RolloutWorkflow)):
        raise ValueError(
            f"workflow.path is {path!r}, which is {found!r}; it must name a subclass of "
            "areal_trainer.rollout.workflow.RolloutWorkflow"
        )
    try:
        inspect.signature(found).bind(**arguments)
    except TypeError as error:
        raise ValueError(
            f"workflow.path is {path!r}, whose constructor does not take {sorted(arguments)}: {error}; "
            "change workflow.kwargs or the constructor"
        ) from error
    return found(**arguments)


def load_attribute(path: str, *, what: str) -> Any:
    """The object ``package.module:name``. Raises ``ValueError`` that names the setting ``what``."""
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ValueError(f"{what} is {path!r}; write package.module:name")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{what} is {path!r}, but there is no module {error.name!r}; install it or add its folder to PYTHONPATH"
        ) from error
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{what} is {path!r}, but {module_name} has no {name!r}")
        found = getattr(found, part)
    return found
