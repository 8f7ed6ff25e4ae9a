"""Several training sets in one epoch, in proportion to their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from areal_trainer.data.files import Row

SET_COLUMN = "train_set"  # the name of the set that a row comes from; rows of train_dataset have none


class Mixture:
    """Which rows an epoch has, as indices into the concatenation of the sets.

    The first set has every row once. Set k has round(rows of the first · ``weights[k]`` / ``weights[0]``) rows, which
    continue where those of the epoch before ended: its rows are drawn in permutations of the set, one after the other,
    so no row is drawn a second time before every other one was drawn.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float]) -> None:
        """``sizes``: rows of each set, at least one."""
        self._sizes = list(sizes)
        self._starts = [0, *np.cumsum(sizes[:-1]).tolist()]
        self.counts = [max(1, round(sizes[0] * weight / weights[0])) for weight in weights]

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return sum(self.counts)

    def order(self, epoch: int, *, seed: int, shuffle: bool) -> NDArray[np.int64]:
        """The rows of an epoch. Without ``shuffle`` those of each set are in stored order and spread evenly. [rows]"""
        parts = [
            self._starts[which] + self._drawn(which, epoch, seed=seed, shuffle=shuffle)
            for which in range(len(self._sizes))
        ]
        every = np.concatenate(parts)
        if shuffle:
            return every[np.random.default_rng([seed, epoch]).permutation(len(every))]
        places = np.concatenate([(np.arange(len(part)) + 0.5) / len(part) for part in parts])
        return every[np.argsort(places, kind="stable")]

    def _drawn(self, which: int, epoch: int, *, seed: int, shuffle: bool) -> NDArray[np.int64]:
        """Rows of one set in an epoch, as indices into the set. [counts[which]]"""
        size, count = self._sizes[which], self.counts[which]
        first = epoch * count
        turns = range(first // size, (first + count - 1) // size + 1)
        drawn = [
            np.random.default_rng([seed, which, turn]).permutation(size) if shuffle else np.arange(size)
            for turn in turns
        ]
        begin = first - turns[0] * size
        return np.concatenate(drawn)[begin : begin + count].astype(np.int64)


class MixedDataset(Dataset):
    """The rows of several data sets, one set after the other; those of the later ones have the column ``train_set``."""

    def __init__(self, sets: Sequence[Any], names: Sequence[str]) -> None:
        """``names`` of the sets after the first."""
        self._sets = list(sets)
        self._names = [None, *names]
        self._ends = np.cumsum([len(one) for one in sets])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Row:
        which = int(np.searchsorted(self._ends, index, side="right"))
        row: Row = self._sets[which][index - (int(self._ends[which - 1]) if which else 0)]
        name = self._names[which]
        return row if name is None else {SET_COLUMN: name, **row}

    def __getitems__(self, indices: list[int]) -> list[Row]:
        return [self[index] for index in indices]
