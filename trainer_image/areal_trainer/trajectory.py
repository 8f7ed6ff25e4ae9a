"""A finished sample, as a workflow hands it to the trainer."""

# T tokens of one sequence (prompt, completion, and tool results between turns).

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray


class Trajectory(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One sequence with what training needs to know of each token; a struct, since a run makes very many.

    Everything about log-probs is aligned to the token: ``logprobs[t]`` is log p(``input_ids[t]`` | tokens before t).
    """

    input_ids: NDArray[np.int64]  # [T]
    loss_mask: NDArray[np.bool_]  # [T] True on tokens that the policy made and that are trained
    logprobs: NDArray[np.float32]  # [T] of the server that made the token; 0 where loss_mask is False
    versions: NDArray[np.int32]  # [T] weight version that made the token; −1 on prompt and tool tokens
    reward: float  # raw task reward
    prompt_len: int
    finish_reason: str  # "stop" or "length"
    prompt: str = ""
    completion: str = ""
    task_id: str = ""
    group: int = -1  # number of the episode, given by the executor; samples of a prompt share it

    def __post_init__(self) -> None:
        length = len(self.input_ids)
        if not length == len(self.loss_mask) == len(self.logprobs) == len(self.versions):
            raise ValueError(
                "input_ids, loss_mask, logprobs and versions of a Trajectory have different lengths: "
                f"{len(self.input_ids)}, {len(self.loss_mask)}, {len(self.logprobs)}, {len(self.versions)}"
            )
        if not 0 < self.prompt_len <= length:
            raise ValueError(f"prompt_len is {self.prompt_len}, outside 1 … {length}, the sequence's length")

    @classmethod
    def of_lists(
        cls, *, input_ids: list[int], loss_mask: list[bool], logprobs: list[float], versions: list[int], **rest: Any
    ) -> Trajectory:
        """The same from plain lists."""
        return cls(
            input_ids=np.asarray(input_ids, dtype=np.int64),
            loss_mask=np.asarray(loss_mask, dtype=np.bool_),
            logprobs=np.asarray(logprobs, dtype=np.float32),
            versions=np.asarray(versions, dtype=np.int32),
            **rest,
        )

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def completion_len(self) -> int:
        """Tokens that are trained."""
        return int(np.count_nonzero(self.loss_mask))

    @property
    def head_version(self) -> int:
        """Weight version of the first trained token; −1 without any."""
        return self._version_at(int(self.loss_mask.argmax()))

    @property
    def tail_version(self) -> int:
        """Weight version of the last trained token; −1 without any."""
        return self._version_at(len(self.loss_mask) - 1 - int(self.loss_mask[::-1].argmax()))

    def _version_at(self, position: int) -> int:
        return int(self.versions[position]) if self.loss_mask[position] else -1

    def in_group(self, group: int) -> Trajectory:
        """A copy that belongs to episode ``group``."""
        return msgspec.structs.replace(self, group=group)
