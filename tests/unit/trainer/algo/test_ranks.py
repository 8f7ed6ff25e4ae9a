"""Statistics and gradients do not depend on the number of ranks or the microbatch split."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from areal_trainer.algo.advantages import gae, normalize_advantages
from areal_trainer.algo.kl import token_rewards
from areal_trainer.algo.logprobs import token_logprobs
from areal_trainer.algo.loss import ppo_loss
from areal_trainer.algo.m2po import second_moment_mask
from areal_trainer.algo.norm import Norm, dense_groups
from areal_trainer.algo.packing import balance_by_tokens, equalize_microbatches, pack_microbatches
from areal_trainer.algo.rewards import normalize_rewards
from areal_trainer.algo.sequences import Reduce, one_rank
from areal_trainer.algo.token_stats import Stats, merge_stats

T = TypeVar("T")

VOCABULARY, HIDDEN = 11, 6
# Group 30 lost a sample, group 5 all but one.
GROUPS = [12, 12, 12, 12, 30, 30, 30, 5, 8, 8, 8, 8]
REWARDS = [1.0, 0.0, 0.3, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.7, 0.0]
LENGTHS = [5, 9, 4, 7, 12, 3, 6, 8, 10, 5, 4, 7]


def sample_tokens(index: int) -> dict[str, Tensor]:
    """Tokens, behaviour and proximal log-probs of a sample, independent of its rank. The prompt has two tokens."""
    generator = torch.Generator().manual_seed(index)
    n = LENGTHS[index]
    behav = -torch.rand(n, generator=generator) * 3
    return {
        "ids": torch.randint(VOCABULARY, (n,), generator=generator),
        "behav": behav,
        "prox": behav + torch.randn(n, generator=generator) * 0.5,
        "ref": behav + torch.randn(n, generator=generator) * 0.5,
        "mask": torch.arange(n) >= 2,
    }


def pack(samples: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
    rows = [sample_tokens(index) for index in samples]
    lengths = [LENGTHS[index] for index in samples]
    empty = sample_tokens(0)
    columns = {name: torch.cat([row[name] for row in rows] or [value[:0]]) for name, value in empty.items()}
    return columns, torch.tensor([0, *lengths]).cumsum(0)


def model() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(99)
    embedding = torch.randn(VOCABULARY, HIDDEN, generator=generator).requires_grad_()
    return embedding, torch.randn(HIDDEN, HIDDEN, generator=generator).requires_grad_()


def advantages_of(samples: Sequence[int], reduce: Reduce) -> Tensor:
    columns, cu_seqlens = pack(samples)
    group_B, groups = dense_groups([GROUPS[index] for index in samples], GROUPS)
    rewards_B = normalize_rewards(
        torch.tensor([REWARDS[index] for index in samples]),
        group_B,
        Norm("group", "group"),
        groups=groups,
        reduce=reduce,
    )
    rewards_T, _ = token_rewards(
        rewards_B,
        columns["mask"],
        cu_seqlens,
        logp_T=columns["prox"],
        ref_logp_T=columns["ref"],
        kl_ctl=0.05,
        estimator="k3",
    )
    return normalize_advantages(
        gae(rewards_T, columns["mask"], cu_seqlens, discount=0.99),
        columns["mask"],
        cu_seqlens,
        group_B,
        Norm("batch", "group"),
        groups=groups,
        reduce=reduce,
    )


def train(samples: Sequence[int], max_tokens: int, microbatches: int, reduce: Reduce) -> tuple[list[Tensor], Stats]:
    """Gradient of the minibatch over all ranks, and the statistics of this rank's samples."""
    columns, cu_seqlens = pack(samples)
    advantages_T = advantages_of(samples, reduce)
    kept_T = second_moment_mask(columns["prox"], columns["behav"], columns["mask"], threshold=0.2, reduce=reduce)
    tokens = reduce(columns["mask"].sum().double())
    embedding, mixer = model()
    bins = pack_microbatches([LENGTHS[index] for index in samples], max_tokens)
    parts: list[Stats] = []
    for micro in equalize_microbatches(bins, [LENGTHS[index] for index in samples], max(microbatches, len(bins))):
        micro_columns, micro_cu = pack([samples[i] for i in micro])
        spans = [slice(int(cu_seqlens[i]), int(cu_seqlens[i + 1])) for i in micro]
        mask = torch.cat([kept_T[span] for span in spans] or [kept_T[:0]])
        index = mask.nonzero().squeeze(1)
        hidden = torch.tanh(embedding[micro_columns["ids"]] @ mixer)
        logp_N, _ = token_logprobs(hidden, embedding, micro_columns["ids"], index, chunk_bytes=5 * 4 * VOCABULARY)
        loss, stats = ppo_loss(
            torch.zeros(len(mask)).index_copy(0, index, logp_N),
            prox_logp_T=micro_columns["prox"],
            behav_logp_T=micro_columns["behav"],
            advantages_T=torch.cat([advantages_T[span] for span in spans] or [advantages_T[:0]]),
            loss_mask_T=mask,
            cu_seqlens=micro_cu,
            eps_clip=0.2,
            c_clip=3.0,
            behav_imp_weight_cap=2.0,
            ratio_level="sequence",
        )
        (loss / tokens.float()).backward()
        parts.append(stats)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in (embedding, mixer)]
    return [reduce(gradient.double()) for gradient in gradients], merge_stats(parts)


class Threads:
    """Ranks as threads: `run` calls a function once per rank, with a reduce that sums over all ranks."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self._barrier = threading.Barrier(ranks, timeout=60)
        self._slots: list[Tensor] = [torch.zeros(0)] * ranks

    def _reduce(self, rank: int) -> Reduce:
        def reduce(values: Tensor) -> Tensor:
            self._slots[rank] = values
            self._barrier.wait()
            total = torch.stack(self._slots).sum(0)
            self._barrier.wait()
            return total

        return reduce

    def run(self, function: Callable[[int, Reduce], T]) -> list[T]:
        def call(rank: int) -> T:
            try:
                return function(rank, self._reduce(rank))
            except Exception:
                self._barrier.abort()
                raise

        with ThreadPoolExecutor(self.ranks) as pool:
            return list(pool.map(call, range(self.ranks)))


def assert_same_training(ours: tuple[list[Tensor], Stats], whole: tuple[list[Tensor], Stats]) -> None:
    for gradient, expected in zip(ours[0], whole[0], strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-5)
    for name, stat in whole[1].items():
        torch.testing.assert_close(ours[1][name], stat, atol=1e-5, rtol=1e-5)


EVERYTHING = list(range(len(LENGTHS)))


@settings(deadline=None, max_examples=25)
@given(st.permutations(EVERYTHING), st.integers(12, 90), st.integers(1, 14))
def test_the_gradient_is_the_same_for_any_microbatch_split(order: list[int], max_tokens: int, count: int) -> None:
    assert_same_training(train(order, max_tokens, count, one_rank), train(EVERYTHING, 1000, 1, one_rank))


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 3), min_size=12, max_size=12), st.integers(12, 40))
def test_the_gradient_is_the_same_for_any_sharing_over_ranks(owner: list[int], max_tokens: int) -> None:
    # Some ranks may have no samples.
    shares = [[index for index in EVERYTHING if owner[index] == rank] for rank in range(4)]
    results = Threads(4).run(lambda rank, reduce: train(shares[rank], max_tokens, 3, reduce))
    whole = train(EVERYTHING, 1000, 1, one_rank)
    for gradients, _ in results:
        assert_same_training((gradients, merge_stats(stats for _, stats in results)), whole)


def test_a_sample_lost_on_one_rank_leaves_the_other_groups_alone() -> None:
    def run(kept: list[int]) -> dict[int, list[float]]:
        shares = [kept[0::2], kept[1::2]]

        def rank_advantages(rank: int, reduce: Reduce) -> dict[int, list[float]]:
            rewards = normalize_rewards(
                torch.tensor([REWARDS[index] for index in shares[rank]]),
                dense_groups([GROUPS[i] for i in shares[rank]], [GROUPS[i] for i in kept])[0],
                Norm("group", "group"),
                groups=len({GROUPS[i] for i in kept}),
                reduce=reduce,
            )
            return {index: [float(reward)] for index, reward in zip(shares[rank], rewards, strict=True)}

        first, second = Threads(2).run(rank_advantages)
        return first | second

    whole, lost = run(EVERYTHING), run([index for index in EVERYTHING if index != 4])
    assert {i: lost[i] for i in lost if GROUPS[i] != 30} == {i: whole[i] for i in lost if GROUPS[i] != 30}


def test_two_gloo_processes_train_as_one(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path)], env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=60) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    results = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    whole = train(EVERYTHING, 1000, 1, one_rank)
    for gradients, _ in results:
        assert_same_training((gradients, merge_stats(stats for _, stats in results)), whole)


def gloo_rank(rank: int, folder: Path) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)

    def reduce(values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    torch.save(train(balance_by_tokens(LENGTHS, 2)[rank], 20, 4, reduce), folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    gloo_rank(int(sys.argv[1]), Path(sys.argv[2]))
