"""Builds trajectories from the model's responses and the context between them."""

# T tokens of one sequence.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from areal_trainer.routing import recorded_until
from areal_trainer.servers.generation import ModelResponse
from areal_trainer.trajectory import Trajectory


class TrajectoryBuilder:
    """One sequence of one or more turns. The model's tokens are trained; the prompt and other context are not.

    Create it as ``builder = TrajectoryBuilder(prompt_ids)``. Call ``builder.add_response(response)`` for each turn and
    ``builder.add_context(token_ids)`` between turns. ``builder.input_ids`` is the next turn's prompt.
    """

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self.input_ids: list[int] = list(prompt_ids)
        self._prompt_len = len(self.input_ids)
        self._turns: list[tuple[int, ModelResponse]] = []  # (position of its first token, turn)

    def add_response(self, response: ModelResponse) -> None:
        """Append the model's next turn. It must have been generated from ``input_ids``."""
        _check(response, len(self.input_ids))
        self._turns.append((len(self.input_ids), response))
        self.input_ids += response.output_tokens

    def add_context(self, token_ids: Sequence[int]) -> None:
        """Append tokens that the model did not generate, such as a tool's result or the next question."""
        self.input_ids += token_ids

    def build(
        self, *, reward: float, prompt: str = "", completion: str = "", task_id: str = "", finish_reason: str = ""
    ) -> Trajectory:
        """The sequence so far; ``finish_reason`` defaults to the last turn's."""
        if not self._turns:
            raise ValueError("a sequence without a response cannot be trained on; call add_response() first")
        length = len(self.input_ids)
        loss_mask = np.zeros(length, dtype=np.bool_)
        logprobs = np.zeros(length, dtype=np.float32)
        versions = np.full(length, -1, dtype=np.int32)
        for start, turn in self._turns:
            end = start + len(turn.output_tokens)
            loss_mask[start:end] = True
            logprobs[start:end] = turn.output_logprobs
            versions[start:end] = turn.output_versions
        return Trajectory(
            input_ids=np.asarray(self.input_ids, dtype=np.int64),
            loss_mask=loss_mask,
            logprobs=logprobs,
            versions=versions,
            reward=float(reward),
            reward_terms=getattr(reward, "terms", None),
            prompt_len=self._prompt_len,
            finish_reason=finish_reason or self._turns[-1][1].stop_reason,
            prompt=prompt,
            completion=completion,
            task_id=task_id,
            experts=recorded_until([(start + turn.output_len, turn.experts) for start, turn in self._turns]),
        )


def build_trajectories(
    prompt_ids: Sequence[int],
    responses: Sequence[ModelResponse],
    *,
    rewards: Sequence[float],
    completions: Sequence[str],
    prompt: str,
    task_id: str,
) -> list[Trajectory]:
    """Like a ``TrajectoryBuilder`` of one turn for each response, but faster: the arrays are slices of shared ones."""
    prompt_len, count = len(prompt_ids), len(responses)
    tokens: list[int] = []
    token_logprobs: list[float] = []
    token_versions: list[int] = []
    lengths: list[int] = []  # prompt, completion, prompt, completion, …
    for response in responses:
        _check(response, prompt_len)
        tokens += response.output_tokens
        token_logprobs += response.output_logprobs
        token_versions += response.output_versions
        lengths += (prompt_len, len(response.output_tokens))
    loss_mask = np.repeat(np.array([False, True] * count), lengths)
    length = len(loss_mask)
    input_ids = np.empty(length, dtype=np.int64)
    input_ids[loss_mask] = tokens
    input_ids[~loss_mask] = np.concatenate([np.asarray(prompt_ids, dtype=np.int64)] * count)
    logprobs = np.zeros(length, dtype=np.float32)
    logprobs[loss_mask] = token_logprobs
    versions = np.full(length, -1, dtype=np.int32)
    versions[loss_mask] = token_versions[0] if _all_equal(token_versions) else token_versions
    trajectories = []
    end = 0
    for response, reward, completion in zip(responses, rewards, completions, strict=True):
        start, end = end, end + prompt_len + len(response.output_tokens)
        trajectories.append(
            Trajectory(
                input_ids=input_ids[start:end],
                loss_mask=loss_mask[start:end],
                logprobs=logprobs[start:end],
                versions=versions[start:end],
                reward=float(reward),
                reward_terms=getattr(reward, "terms", None),
                prompt_len=prompt_len,
                finish_reason=response.stop_reason,
                prompt=prompt,
                completion=completion,
                task_id=task_id,
                experts=response.experts,
            )
        )
    return trajectories


def _all_equal(values: list[int]) -> bool:
    return bool(values) and values.count(values[0]) == len(values)


def _check(response: ModelResponse, length: int) -> None:
    """Raise ``ValueError`` unless the response was generated from ``length`` tokens."""
    if len(response.input_tokens) != length:
        raise ValueError(
            f"a response was generated from {len(response.input_tokens)} tokens, but the sequence has {length}; "
            "use builder.input_ids as the prompt, and add_context() for tokens between turns"
        )
