"""Batches of problems, split over data-parallel ranks, whose position survives a change of the world size."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler
from torchdata.stateful_dataloader import StatefulDataLoader

from areal_api.config import DatasetConfig


class GlobalBatches(Sampler[list[int]]):
    """The slice of each global batch that belongs to one rank.

    The order of the global batches follows from seed and epoch alone, and a rank's slice is contiguous: the batches of
    ranks 0, 1, … laid end to end are the global batch for any number of ranks. Iterating goes on from ``consumed``
    to the end of its epoch.
    """

    def __init__(
        self, n_rows: int, *, batch_size: int, shuffle: bool, drop_last: bool, seed: int, rank: int, world_size: int
    ) -> None:
        self.n_rows = n_rows
        self.batch_size = batch_size  # global
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.consumed = 0  # batches since the first epoch began
        self._length = n_rows // batch_size if drop_last else -(-n_rows // batch_size)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._length

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Row numbers in the order of ``epoch``."""
        if not self.shuffle:
            return np.arange(self.n_rows)
        return np.random.default_rng([self.seed, epoch]).permutation(self.n_rows)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, first = divmod(self.consumed, len(self))
        order = self.order(epoch)
        for index in range(first, len(self)):
            batch = order[index * self.batch_size : (index + 1) * self.batch_size]
            begin, end = (len(batch) * rank // self.world_size for rank in (self.rank, self.rank + 1))
            yield batch[begin:end].tolist()


class PromptLoader(StatefulDataLoader):
    """A ``StatefulDataLoader`` of problems: a batch is a list of dictionaries, this rank's part of the global batch.

    Its state is the number of batches handed out, which is the same on every rank, so a run may go on with another
    world size. ``iter`` goes on from there to the end of the epoch; the next ``iter`` is the next epoch.
    """

    def __init__(self, problems: Dataset, batches: GlobalBatches, *, num_workers: int) -> None:
        # A generator of its own: otherwise each epoch would draw from torch's global one, and a resumed run would
        # see other random numbers than an undisturbed one.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="'set_vital' is deprecated")  # torchdata 0.11 under torch 2.14
            super().__init__(
                problems,
                batch_sampler=batches,
                num_workers=num_workers,
                collate_fn=as_list,
                generator=torch.Generator().manual_seed(batches.seed),
            )
        self._batches = batches

    @property
    def consumed(self) -> int:
        """Batches handed out since the first epoch began."""
        return self._batches.consumed

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._batches)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for batch in super().__iter__():
            self._batches.consumed += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` needs to go on, on any number of ranks."""
        return {"consumed": self.consumed, **self._identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after ``consumed`` batches; ``ValueError`` where the order of the problems is no longer the same."""
        for name, now in self._identity().items():
            if state_dict[name] != now:
                raise ValueError(
                    f"the checkpoint was written with {name} {state_dict[name]}, now it is {now}: the position in the "
                    "data would mean other problems; restore that setting, or start a new trial_name"
                )
        super().load_state_dict({})
        self._batches.consumed = state_dict["consumed"]

    def _identity(self) -> dict[str, Any]:
        batches = self._batches
        return {
            "train_dataset rows": batches.n_rows,
            "train_dataset.batch_size": batches.batch_size,
            "train_dataset.shuffle": batches.shuffle,
            "seed": batches.seed,
        }


def as_list(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The collate function: a batch is the list of its rows."""
    return rows


def global_batches(
    config: DatasetConfig, n_rows: int, *, section: str, seed: int, rank: int, world_size: int
) -> GlobalBatches:
    """Batches of ``config`` for ``rank``; ``ValueError`` where they cannot be split or there is not one."""
    size = config.batch_size
    if size % world_size:
        below, above = size // world_size * world_size, -(-size // world_size) * world_size
        near = f"{below} or {above}" if below else str(above)
        raise ValueError(
            f"{section}.batch_size is {size}, which {world_size} trainer ranks cannot share equally; set it to {near}"
        )
    if config.drop_last and n_rows < size:
        raise ValueError(
            f"{section} has {n_rows} problems, fewer than its batch_size {size}, and drop_last leaves out a smaller "
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
    )
