"""Several training sets in one epoch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from areal_api.data_config import DatasetConfig, MixedSet
from areal_trainer.data.dataset import train_loader
from areal_trainer.data.loader import PromptLoader
from areal_trainer.data.mixture import MixedDataset, Mixture
from support.word_tokenizer import word_tokenizer


def sets_of(mixture_order: list[int], sizes: list[int]) -> Counter[int]:
    return Counter(sum(index >= end for end in (sizes[0], sum(sizes[:2]))) for index in mixture_order)


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_has_the_rows_of_each_set_by_weight(shuffle: bool) -> None:
    sizes = [100, 1_000, 10]
    mixture = Mixture(sizes, [1.0, 0.5, 0.25])
    for epoch in range(3):
        order = mixture.order(epoch, seed=1, shuffle=shuffle).tolist()
        assert sets_of(order, sizes) == {0: 100, 1: 50, 2: 25}
        assert sorted(index for index in order if index < 100) == list(range(100))


def test_a_large_set_continues_and_a_small_one_repeats_evenly() -> None:
    mixture = Mixture([100, 1_000, 10], [1.0, 0.5, 0.25])
    drawn = [index for epoch in range(20) for index in mixture.order(epoch, seed=1, shuffle=True).tolist()]
    counts = Counter(drawn)
    assert all(counts[index] == 1 for index in range(100, 1_100))  # 20 epochs of 50 rows
    assert all(counts[index] == 50 for index in range(1_100, 1_110))  # 20 epochs of 25 rows


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return Mixture([30, 30], [1.0, 1.0]).order(epoch, seed=seed, shuffle=True).tolist()

    assert order(1, 4) == order(1, 4)
    assert order(1, 4) != order(2, 4)
    assert order(1, 4) != order(1, 5)


def test_without_shuffling_the_sets_alternate() -> None:
    mixture = Mixture([4, 9], [1.0, 0.5])
    assert mixture.order(0, seed=1, shuffle=False).tolist() == [0, 4, 1, 2, 5, 3]
    assert mixture.order(1, seed=1, shuffle=False).tolist() == [0, 6, 1, 2, 7, 3]


def test_rows_name_their_set() -> None:
    mixed = MixedDataset([[{"a": 1}], [{"a": 2}, {"a": 3, "train_set": "its own"}]], ["other"])
    assert len(mixed) == 3
    assert mixed[0] == {"a": 1}
    assert mixed.__getitems__([1, 2]) == [{"a": 2, "train_set": "other"}, {"a": 3, "train_set": "its own"}]


def test_the_loader_mixes_files_and_refuses_to_resume_with_another_mix(tmp_path: Path) -> None:
    for name, count in (("a", 8), ("b", 20)):
        rows = [f'{{"question": "{name}{number}?", "answer": "{number}"}}' for number in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    config = DatasetConfig(path=str(tmp_path / "a.jsonl"), batch_size=4, apply_chat_template=False, instruction="")

    def loader(weight: float) -> PromptLoader:
        other = MixedSet(name="b", weight=weight, path=str(tmp_path / "b.jsonl"))
        return train_loader(config, word_tokenizer(), seed=1, mix=[other])

    mixed = loader(0.5)
    rows = [row for batch in mixed for row in batch]
    assert len(mixed) == 3
    assert Counter(row["prompt"][0] for row in rows) == {"a": 8, "b": 4}
    assert {row["task_id"].rpartition("/")[0] for row in rows} == {"train", "b/train"}
    with pytest.raises(ValueError, match=r"rows of each training set \[8, 4\], now it is \[8, 2\]"):
        loader(0.25).load_state_dict(mixed.state_dict())
