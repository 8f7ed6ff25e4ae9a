"""A data loader for data-parallel ranks whose state can be restored with a different world size."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler
from torchdata.stateful_dataloader import StatefulDataLoader

from areal_api.data_config import DatasetConfig
from areal_trainer import tagged_json
from areal_trainer.data.mixture import Mixture


class GlobalBatches(Sampler[list[int]]):
    """Samples one rank's slice of each global batch.

    The global batches depend on seed and epoch only. Each rank's slice is contiguous, so for any world size the slices
    of ranks 0, 1, … concatenate to the global batch. Iteration starts after ``consumed`` batches and ends with the
    epoch.
    """

    def __init__(
        self,
        n_rows: int,
        *,
        batch_size: int,
        shuffle: bool,
        drop_last: bool,
        seed: int,
        rank: int,
        world_size: int,
        mixture: Mixture | None = None,
    ) -> None:
        """``n_rows`` of an epoch; ``mixture`` chooses them from several sets."""
        self.n_rows = n_rows
        self.mixture = mixture
        self.batch_size = batch_size  # global
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.consumed = 0  # batches since the start of the first epoch
        self._length = n_rows // batch_size if drop_last else -(-n_rows // batch_size)

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._length

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Row indices in the order of ``epoch``."""
        if self.mixture is not None:
            return self.mixture.order(epoch, seed=self.seed, shuffle=self.shuffle)
        if not self.shuffle:
            return np.arange(self.n_rows)
        return np.random.default_rng([self.seed, epoch]).permutation(self.n_rows)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, start = divmod(self.consumed, len(self))
        order = self.order(epoch)
        for index in range(start, len(self)):
            batch = order[index * self.batch_size : (index + 1) * self.batch_size]
            begin, end = (len(batch) * rank // self.world_size for rank in (self.rank, self.rank + 1))
            yield batch[begin:end].tolist()


class PromptLoader(StatefulDataLoader):
    """A ``StatefulDataLoader`` whose batches are lists of rows: this rank's slice of the global batch.

    Its state is the number of batches returned, which is the same on every rank, so a run can resume with a different
    world size. ``iter`` continues from there to the end of the epoch; the next ``iter`` starts the next epoch.
    """

    def __init__(self, dataset: Dataset, batches: GlobalBatches, *, num_workers: int) -> None:
        # A private generator: the default would draw from torch's global generator at each epoch, so a resumed run
        # would see different random numbers than an uninterrupted one.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="'set_vital' is deprecated")  # torchdata 0.11 under torch 2.14
            super().__init__(
                dataset,
                batch_sampler=batches,
                num_workers=num_workers,
                collate_fn=as_list,
                generator=torch.Generator().manual_seed(batches.seed),
            )
        self._batches = batches

    @property
    def consumed(self) -> int:
        """Batches returned since the start of the first epoch."""
        return self._batches.consumed

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._batches)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for batch in super().__iter__():
            self._batches.consumed += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The state for ``load_state_dict``, valid for any world size."""
        return {"consumed": self.consumed, **self._identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after ``consumed`` batches. Raises ``ValueError`` if the prompts or their order have changed."""
        differences = [
            f"{name} {state_dict.get(name)}, now it is {current}"
            for name, current in self._identity().items()
            if state_dict.get(name) != current
        ]
        if differences:
            raise ValueError(
                f"the recovery checkpoint was written with {'; with '.join(differences)}. That changes the prompts or "
                "their order; restore it, or start a run with a new trial_name"
            )
        super().load_state_dict({})
        self._batches.consumed = state_dict["consumed"]

    def _identity(self) -> dict[str, Any]:
        batches = self._batches
        return {
            "train_dataset rows": batches.n_rows,
            "train_dataset.batch_size": batches.batch_size,
            "train_dataset.shuffle": batches.shuffle,
            "train_dataset.drop_last": batches.drop_last,
            "seed": batches.seed,
            "train_dataset content": self._digest,
            **({} if batches.mixture is None else {"rows of each training set": batches.mixture.counts}),
        }

    @cached_property
    def _digest(self) -> str:
        """Digest of all rows as passed to workflows."""
        digest = hashlib.blake2b(digest_size=8)
        for index in range(len(self.dataset)):
            digest.update(tagged_json.dumps(self.dataset[index], what=f"train_dataset row {index + 1}").encode())
        return digest.hexdigest()


def as_list(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Collate function: a batch is the list of its rows."""
    return rows


def global_batches(
    config: DatasetConfig,
    n_rows: int,
    *,
    section: str,
    seed: int,
    rank: int,
    world_size: int,
    mixture: Mixture | None = None,
) -> GlobalBatches:
    """The batches of ``rank``, with ``n_rows`` in an epoch of all ranks.

    Raises ``ValueError`` if they cannot be split evenly or there is none.
    """
    size = config.batch_size
    if size % world_size:
        below, above = size // world_size * world_size, -(-size // world_size) * world_size
        near = f"{below} or {above}" if below else str(above)
        raise ValueError(
            f"{section}.batch_size is {size}, not divisible by the {world_size} trainer ranks; set it to {near}"
        )
    if config.drop_last and n_rows < size:
        raise ValueError(
            f"{section} has {n_rows} prompts, fewer than its batch_size {size}, and drop_last drops an incomplete "
            f"batch; lower {section}.batch_size or set {section}.drop_last=false"
        )
    return GlobalBatches(
        n_rows,
        batch_size=size,
        shuffle=config.shuffle,
        drop_last=config.drop_last,
        seed=seed,
        rank=rank,
        world_size=world_size,
        mixture=mixture,
    )
