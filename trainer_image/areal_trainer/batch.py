"""A training batch: one rank's trajectories, concatenated into tensors."""

# B sequences of this rank, T tokens of all of them, G groups over all ranks

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from areal_trainer.algo.norm import dense_groups
from areal_trainer.ranks import Ranks
from areal_trainer.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """All tensors are in host memory; per-token values are aligned to their token (see ``Trajectory``)."""

    trajectories: list[Trajectory]
    input_ids_T: Tensor  # int64
    loss_mask_T: Tensor  # bool, True on trained tokens
    behav_logp_T: Tensor  # float32, from the server that generated the token; 0 outside the loss mask
    versions_T: Tensor  # int32, weight version that generated the token; −1 on prompt and tool tokens
    cu_seqlens: Tensor  # int32 of length B + 1: start of each sequence, then T
    rewards_B: Tensor  # float32, raw task rewards
    prompt_len_B: Tensor  # int64
    group_B: Tensor  # int64 in 0 … G−1, numbered alike on every rank
    n_groups: int  # G

    def __len__(self) -> int:
        return len(self.trajectories)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return [len(trajectory) for trajectory in self.trajectories]


def pack(trajectories: Sequence[Trajectory]) -> PackedBatch:
    """Concatenate this rank's trajectories (possibly none).

    Collective: the ranks agree on the group numbers. Raises ``ValueError`` for a sequence whose first token is trained
    (no token precedes it to predict it from) and for log-probs that are not finite.
    """
    trajectories = list(trajectories)
    for trajectory in trajectories:
        _check(trajectory)
    group_B, n_groups = dense_groups([t.group for t in trajectories], _all_groups([t.group for t in trajectories]))
    ends = np.cumsum([0, *(len(t) for t in trajectories)], dtype=np.int32)
    return PackedBatch(
        trajectories=trajectories,
        input_ids_T=_joined([t.input_ids for t in trajectories], np.int64),
        loss_mask_T=_joined([t.loss_mask for t in trajectories], np.bool_),
        behav_logp_T=_joined([np.where(t.loss_mask, t.logprobs, 0.0) for t in trajectories], np.float32),
        versions_T=_joined([t.versions for t in trajectories], np.int32),
        cu_seqlens=torch.from_numpy(ends),
        rewards_B=torch.tensor([t.reward for t in trajectories], dtype=torch.float32),
        prompt_len_B=torch.tensor([t.prompt_len for t in trajectories], dtype=torch.int64),
        group_B=group_B,
        n_groups=n_groups,
    )


def _check(trajectory: Trajectory) -> None:
    if trajectory.loss_mask[0]:
        raise ValueError(
            f"the first token of a sample of task {trajectory.task_id!r} is in its loss_mask; a workflow's prompt must "
            "have at least one token"
        )
    if not np.isfinite(trajectory.logprobs[trajectory.loss_mask]).all():
        raise ValueError(f"a sample of task {trajectory.task_id!r} has log-probs that are not finite")


def _joined(parts: list[np.ndarray], dtype: type[np.generic]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False))


def _all_groups(groups: list[int]) -> list[int]:
    return [group for part in Ranks.current().gather_objects(groups) for group in part]
