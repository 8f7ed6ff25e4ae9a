"""Workflows: an episode samples completions for one row of data and returns them as trajectories."""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, cast

from areal_api.generation import GenerationHyperparameters
from areal_trainer.data.tokenizer import Codec, render_prompt
from areal_trainer.import_path import load_object
from areal_trainer.rollout.trajectory_builder import build_trajectories
from areal_trainer.servers.generation import ModelRequest, ModelResponse
from areal_trainer.tracing import span
from areal_trainer.trajectory import Trajectory

RewardFn = Callable[..., float | Awaitable[float]]
_RESERVED_ARGUMENTS = frozenset({"prompt", "completions", "prompt_ids", "completion_ids"})


class GenerationEngine(Protocol):
    """The part of the engine that a workflow uses."""

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        """One completion."""
        ...

    async def agenerate_n(self, request: ModelRequest, n: int) -> list[ModelResponse]:
        """Several completions of one prompt, from one server."""
        ...

    def get_version(self) -> int:
        """Weight version that the current servers hold."""
        ...

    async def apost(self, path: str, body: dict[str, Any]) -> Any:
        """The response of any server to a request that does not depend on its weights, such as a parser's."""
        ...


class RolloutWorkflow(ABC):
    """One instance serves all episodes, which run concurrently on one event loop: keep per-episode state in locals."""

    @abstractmethod
    async def arun_episode(self, engine: GenerationEngine, data: dict[str, Any]) -> list[Trajectory] | None:
        """Run one episode on the row ``data``. None or an empty list rejects the episode, and another replaces it."""


class RLVRWorkflow(RolloutWorkflow):
    """Samples ``gconfig.n_samples`` completions of the prompt and scores each with the reward function.

    A row has ``messages`` (roles and contents) or ``prompt`` (plain text). The reward function is called as
    ``reward_fn(prompt, completions, prompt_ids, completion_ids, **columns)`` with all columns of the row. A synchronous
    one blocks the event loop of all episodes, so run a slow one in a ``RewardPool``, whose ``score`` is a reward
    function too.
    """

    def __init__(
        self,
        reward_fn: RewardFn,
        gconfig: GenerationHyperparameters,
        tokenizer: Any,
        *,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.reward_fn = reward_fn
        self.gconfig = with_stop_tokens(gconfig, tokenizer)
        self.tokenizer = tokenizer
        self._codec = Codec(tokenizer)
        self._chat_template_kwargs = chat_template_kwargs or {}

    async def arun_episode(self, engine: GenerationEngine, data: dict[str, Any]) -> list[Trajectory] | None:
        """One trajectory per sample."""
        prompt, prompt_ids = self.tokenize(data)
        request = ModelRequest(input_ids=prompt_ids, gconfig=self.gconfig)
        responses = await engine.agenerate_n(request, self.gconfig.n_samples)
        completions = self._codec.decode(
            [response.output_tokens for response in responses], skip_special_tokens=self.gconfig.skip_special_tokens
        )
        with span("reward", samples=len(responses)):
            rewards = await self._rewards(data, prompt, prompt_ids, completions, responses)
        return build_trajectories(
            prompt_ids, responses, rewards=rewards, completions=completions, prompt=prompt, task_id=task_id_of(data)
        )

    def tokenize(self, data: dict[str, Any]) -> tuple[str, list[int]]:
        """The prompt as text and as token ids."""
        messages = data.get("messages")
        if messages is not None:
            prompt = render_prompt(self.tokenizer, messages, **self._chat_template_kwargs)
            # The template has already added the special tokens.
            return prompt, self._codec.encode(prompt, add_special_tokens=False)
        if "prompt" not in data:
            raise ValueError(
                f"a row has neither 'messages' nor 'prompt', only {sorted(data)}; "
                "set train_dataset.question_column, or provide rows with one of the two"
            )
        return data["prompt"], self._codec.encode(data["prompt"])

    async def _rewards(
        self,
        data: dict[str, Any],
        prompt: str,
        prompt_ids: list[int],
        completions: list[str],
        responses: list[ModelResponse],
    ) -> list[float]:
        columns = {name: value for name, value in data.items() if name not in _RESERVED_ARGUMENTS}
        rewards = [
            self.reward_fn(prompt, completion, prompt_ids, response.output_tokens, **columns)
            for completion, response in zip(completions, responses, strict=True)
        ]
        if all(isinstance(reward, float) for reward in rewards):
            return cast("list[float]", rewards)
        # All calls are started before the first is awaited.
        pending = [reward for reward in rewards if isinstance(reward, Awaitable)]
        awaited = iter(await asyncio.gather(*pending)) if pending else iter(())
        found = [next(awaited) if isinstance(reward, Awaitable) else reward for reward in rewards]
        return [reward if isinstance(reward, float) else float(reward) for reward in found]  # a float may have terms


def with_stop_tokens(gconfig: GenerationHyperparameters, tokenizer: Any) -> GenerationHyperparameters:
    """``gconfig`` with the tokenizer's end-of-text and padding ids as additional stop tokens."""
    if gconfig.ignore_eos:
        return gconfig
    ids = {*gconfig.stop_token_ids, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
    return gconfig.new(stop_token_ids=sorted(ids))


def task_id_of(data: dict[str, Any]) -> str:
    """The row's ``task_id`` or ``id``, or an empty string."""
    return str(data.get("task_id", data.get("id", "")))


def load_workflow(path: str, /, **arguments: Any) -> RolloutWorkflow:
    """Construct the workflow ``package.module:Class`` with ``arguments``; raises ``ValueError`` if it cannot."""
    loaded = load_object(path, field="workflow.path")
    if not (inspect.isclass(loaded) and issubclass(loaded, RolloutWorkflow)):
        raise ValueError(
            f"workflow.path is {path!r}, which is {loaded!r}; it must name a subclass of "
            "areal_trainer.rollout.workflow.RolloutWorkflow"
        )
    try:
        inspect.signature(loaded).bind(**arguments)
    except TypeError as error:
        raise ValueError(
            f"workflow.path is {path!r}, whose constructor does not take {sorted(arguments)}: {error}; "
            "change workflow.kwargs or the constructor"
        ) from error
    return loaded(**arguments)
