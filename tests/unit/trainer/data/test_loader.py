"""The loader: one global order for any world size, and a position that can be restored with another world size."""

from __future__ import annotations

import json
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_api.data_config import DatasetConfig
from areal_trainer.data.dataset import train_loader
from areal_trainer.data.loader import GlobalBatches, PromptLoader
from support.word_tokenizer import word_tokenizer


@pytest.fixture
def ten_rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"question": f"q{n}", "answer": str(n)}) + "\n" for n in range(10)))
    return file


def loader(file: Path, *, rank: int = 0, world_size: int = 1, seed: int = 1, **changes: Any) -> PromptLoader:
    config = DatasetConfig(path=str(file), **{"batch_size": 4, **changes})
    return train_loader(config, word_tokenizer(), seed=seed, rank=rank, world_size=world_size)


def answers(batch: list[dict[str, Any]]) -> list[int]:
    return [int(row["answer"]) for row in batch]


def forever(batches: PromptLoader) -> Any:
    while True:
        for batch in batches:
            yield answers(batch)


def test_batches_are_lists_of_rows_and_an_epoch_contains_each_row_once(ten_rows: Path) -> None:
    batches = [answers(batch) for batch in loader(ten_rows, drop_last=False)]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(chain(*batches)) == list(range(10))
    assert [len(batch) for batch in loader(ten_rows)] == [4, 4]
    assert [answers(batch) for batch in loader(ten_rows, shuffle=False)] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_order_depends_on_seed_and_epoch(ten_rows: Path) -> None:
    first, again, other = (list(islice(forever(loader(ten_rows, seed=seed)), 4)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert first[:2] != first[2:]  # the second epoch


def test_concatenated_rank_slices_equal_the_global_batch(ten_rows: Path) -> None:
    whole = list(islice(forever(loader(ten_rows, drop_last=False)), 6))
    parts = [list(islice(forever(loader(ten_rows, rank=r, world_size=4, drop_last=False)), 6)) for r in range(4)]
    assert [list(chain(*slices)) for slices in zip(*parts, strict=True)] == whole
    assert [len(part[0]) for part in parts] == [1, 1, 1, 1]


@given(
    n_rows=st.integers(1, 40),
    slices=st.integers(1, 5),
    world_size=st.sampled_from([1, 2, 4]),
    resumed_size=st.sampled_from([1, 2, 4]),
    consumed=st.integers(0, 30),
    drop_last=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_world_size_resumes_where_another_stopped(
    n_rows: int, slices: int, world_size: int, resumed_size: int, consumed: int, drop_last: bool
) -> None:
    batch_size = 4 * slices
    if drop_last and n_rows < batch_size:
        return

    def global_batches(size: int, start: int, count: int) -> list[list[int]]:
        samplers = [
            GlobalBatches(
                n_rows,
                batch_size=batch_size,
                shuffle=True,
                drop_last=drop_last,
                seed=3,
                rank=rank,
                world_size=size,
            )
            for rank in range(size)
        ]
        result: list[list[int]] = []
        for position in range(start, start + count):
            for sampler in samplers:
                sampler.consumed = position
            result.append(list(chain(*(next(iter(sampler)) for sampler in samplers))))
        return result

    uninterrupted = global_batches(1, 0, consumed + 3)
    assert global_batches(world_size, 0, consumed) + global_batches(resumed_size, consumed, 3) == uninterrupted


@pytest.mark.parametrize("consumed", [0, 1, 2, 3, 5])
def test_saved_position_resumes_with_another_world_size(ten_rows: Path, consumed: int) -> None:
    uninterrupted = list(islice(forever(loader(ten_rows)), 8))
    stopped = loader(ten_rows, rank=1, world_size=2)
    list(islice(forever(stopped), consumed))
    state = json.loads(json.dumps(stopped.state_dict()))
    assert state["consumed"] == consumed
    resumed = loader(ten_rows)
    resumed.load_state_dict(state)
    assert list(islice(forever(resumed), 8 - consumed)) == uninterrupted[consumed:]


def test_worker_processes_do_not_change_order_or_position(ten_rows: Path) -> None:
    plain, workers = loader(ten_rows), loader(ten_rows, num_workers=2)
    assert list(islice(forever(workers), 3)) == list(islice(forever(plain), 3))
    assert workers.state_dict() == plain.state_dict()


def test_loading_does_not_use_the_global_random_generator(ten_rows: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(islice(forever(loader(ten_rows)), 5))
    assert torch.equal(torch.get_rng_state(), before)


def test_position_in_different_data_is_rejected(ten_rows: Path) -> None:
    state = loader(ten_rows).state_dict()
    with pytest.raises(ValueError, match=r"train_dataset\.batch_size 4, now it is 2"):
        loader(ten_rows, batch_size=2).load_state_dict(state)
    with pytest.raises(ValueError, match="train_dataset rows 10, now it is 7"):
        loader(ten_rows, limit=7).load_state_dict(state)
    with pytest.raises(ValueError, match="seed 1, now it is 2"):
        loader(ten_rows, seed=2).load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"drop_last": False}, "train_dataset.drop_last True, now it is False"),
        ({"instruction": "Think."}, "train_dataset content"),
        ({"limit": 9}, "train_dataset rows 10, now it is 9; with train_dataset content"),
        ({"shuffle": False}, "train_dataset.shuffle True, now it is False"),
        ({"seed": 2}, "seed 1, now it is 2"),
    ],
    ids=["drop_last", "instruction", "limit", "shuffle", "seed"],
)
def test_a_resume_with_other_prompts_is_refused_with_the_difference(
    ten_rows: Path, change: dict[str, Any], difference: str
) -> None:
    state = loader(ten_rows).state_dict()
    with pytest.raises(ValueError, match=f"the recovery checkpoint was written with {difference}"):
        loader(ten_rows, **change).load_state_dict(state)


def test_a_resume_with_one_changed_row_is_refused(ten_rows: Path) -> None:
    state = loader(ten_rows).state_dict()
    ten_rows.write_text(ten_rows.read_text().replace('"q7"', '"Q7"'))
    with pytest.raises(ValueError, match="train_dataset content"):
        loader(ten_rows).load_state_dict(state)


def test_batch_size_not_divisible_by_the_ranks_is_rejected(ten_rows: Path) -> None:
    with pytest.raises(ValueError, match=r"batch_size is 4, not divisible by the 3 trainer ranks; set it to 3 or 6"):
        loader(ten_rows, world_size=3)
    with pytest.raises(ValueError, match="set it to 8"):
        loader(ten_rows, world_size=8)


def test_dataset_smaller_than_a_batch_is_rejected_with_drop_last(ten_rows: Path) -> None:
    with pytest.raises(ValueError, match=r"10 prompts, fewer than its batch_size 16.*drop_last=false"):
        loader(ten_rows, batch_size=16)
    assert [len(batch) for batch in loader(ten_rows, batch_size=16, drop_last=False)] == [10]
