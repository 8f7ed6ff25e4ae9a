"""Turn what the model made, and what it was given between, into one trajectory with a mask, versions and log-probs."""

# T tokens of one sequence.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from areal_trainer.servers.generation import ModelResponse
from areal_trainer.trajectory import Trajectory


class Recording:
    """One sequence of several turns. The model's tokens are trained; what it was given is not.

    ``recording = Recording(prompt_ids)``, then for each turn ``recording.made(response)`` and, between turns,
    ``recording.given(token_ids)``. ``recording.input_ids`` is the next turn's prompt.
    """

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self.input_ids: list[int] = list(prompt_ids)
        self._prompt_len = len(self.input_ids)
        self._turns: list[tuple[int, ModelResponse]] = []  # (position of its first token, turn)

    def made(self, response: ModelResponse) -> None:
        """The model's next turn; its prompt must be what was recorded so far."""
        _check(response, len(self.input_ids))
        self._turns.append((len(self.input_ids), response))
        self.input_ids += response.output_tokens

    def given(self, token_ids: Sequence[int]) -> None:
        """Tokens that the model did not make: a tool's result, the next question."""
        self.input_ids += token_ids

    def trajectory(
        self, *, reward: float, prompt: str = "", completion: str = "", task_id: str = "", finish_reason: str = ""
    ) -> Trajectory:
        """The sequence so far; ``finish_reason`` is the last turn's unless given."""
        if not self._turns:
            raise ValueError("a recording without a turn of the model cannot be trained on")
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
            prompt_len=self._prompt_len,
            finish_reason=finish_reason or self._turns[-1][1].stop_reason,
            prompt=prompt,
            completion=completion,
            task_id=task_id,
        )


def record_answers(
    prompt_ids: Sequence[int],
    responses: Sequence[ModelResponse],
    *,
    rewards: Sequence[float],
    completions: Sequence[str],
    prompt: str,
    task_id: str,
) -> list[Trajectory]:
    """What a ``Recording`` of one turn makes of each answer to a prompt; their arrays are parts of common ones."""
    prompt_len, count = len(prompt_ids), len(responses)
    tokens: list[int] = []
    token_logprobs: list[float] = []
    token_versions: list[int] = []
    lengths: list[int] = []  # of the prompt, then of an answer, again and again
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
                prompt_len=prompt_len,
                finish_reason=response.stop_reason,
                prompt=prompt,
                completion=completion,
                task_id=task_id,
            )
        )
    return trajectories


def _all_equal(values: list[int]) -> bool:
    return bool(values) and values.count(values[0]) == len(values)


def _check(response: ModelResponse, recorded: int) -> None:
    """Raise ``ValueError`` where a turn was not generated from the ``recorded`` tokens."""
    if len(response.input_tokens) != recorded:
        raise ValueError(
            f"a turn was generated from {len(response.input_tokens)} tokens, {recorded} are recorded; "
            "give recording.input_ids to the model, and record what is put between turns"
        )
