"""The algorithm against an independent implementation: plain loops over Python floats."""

# A batch is a list of samples; a sample holds lists over its tokens.

import math
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from areal_trainer.algo.advantages import gae, normalize_advantages
from areal_trainer.algo.kl import token_rewards
from areal_trainer.algo.loss import ppo_loss, sapo_loss
from areal_trainer.algo.m2po import second_moment_mask
from areal_trainer.algo.norm import Norm, dense_groups
from areal_trainer.algo.rewards import normalize_rewards
from areal_trainer.algo.sequences import one_rank

LEVELS = [None, "batch", "group"]


@dataclass
class Sample:
    group: int
    reward: float
    mask: list[bool]
    logp: list[float]
    prox: list[float]
    behav: list[float]
    ref: list[float]


def random_batch(seed: int) -> list[Sample]:
    """Groups of 1 to 4 samples in random order, several turns, sometimes a sample without a response."""
    rng = random.Random(seed)
    samples = []
    for group in rng.sample(range(100), rng.randint(1, 5)):
        for _ in range(rng.randint(1, 4)):
            n = rng.randint(1, 12)
            mask = [False] + [rng.random() < 0.7 for _ in range(n - 1)]
            behav = [rng.uniform(-3, -0.1) for _ in range(n)]
            prox = [x + rng.gauss(0, 0.5) for x in behav]
            logp = [x + rng.gauss(0, 0.3) for x in prox]
            ref = [x + rng.gauss(0, 0.3) for x in behav]
            samples.append(Sample(group, rng.choice([0.0, 1.0, rng.uniform(-2, 2)]), mask, logp, prox, behav, ref))
    rng.shuffle(samples)
    return samples


def loop_normalize(
    values: list[list[float]],
    groups: list[int],
    mean_level: str | None,
    std_level: str | None,
    leave_one_out: bool,
    unbiased: bool,
) -> list[list[float]]:
    result = []
    for i, own in enumerate(values):
        row = []
        for x in own:
            y = x
            comparable = True
            for level in (mean_level, std_level):
                others = [
                    j
                    for j in range(len(values))
                    if j != i and values[j] and (level == "batch" or groups[j] == groups[i])
                ]
                if level is not None and not others:
                    comparable = False
            if not comparable:
                row.append(0.0)
                continue
            if mean_level is not None:
                pool = []
                for j, theirs in enumerate(values):
                    if (mean_level == "batch" or groups[j] == groups[i]) and not (leave_one_out and j == i):
                        pool += theirs
                y -= math.fsum(pool) / len(pool)
            if std_level is not None:
                pool = []
                for j, theirs in enumerate(values):
                    if std_level == "batch" or groups[j] == groups[i]:
                        pool += theirs
                if len(set(pool)) == 1:
                    row.append(0.0)
                    continue
                mean = math.fsum(pool) / len(pool)
                square = math.fsum((p - mean) ** 2 for p in pool)
                y /= math.sqrt(square / (len(pool) - 1 if unbiased else len(pool))) + 1e-5
            row.append(y)
        result.append(row)
    return result


def loop_advantages(
    sample: Sample, reward: float, kl_ctl: float, estimator: str, discount: float, lam: float
) -> list[float]:
    """GAE by its recursion with V = 0, over the response tokens of one sample."""
    answers = [t for t in range(len(sample.mask)) if sample.mask[t]]
    advantages = [0.0] * len(sample.mask)
    following = 0.0
    for t in reversed(answers):
        d = sample.logp[t] - sample.ref[t]
        k = {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[estimator]
        r = -kl_ctl * k + (reward if t == answers[-1] else 0.0)
        following = r + discount * lam * following
        advantages[t] = following
    return advantages


def loop_loss(
    samples: list[Sample],
    advantages: list[list[float]],
    eps: float,
    higher: float | None,
    c_clip: float | None,
    cap: float | None,
    decoupled: bool,
    level: str,
) -> tuple[float, dict[str, list[float]]]:
    total = 0.0
    seen: dict[str, list[float]] = {"ratio": [], "clip": [], "dual": [], "weight": []}
    for sample, rows in zip(samples, advantages, strict=True):
        answers = [t for t in range(len(sample.mask)) if sample.mask[t]]
        for t in answers:
            span = answers if level == "sequence" else [t]
            ratio = math.exp(sum(sample.logp[s] - sample.prox[s] for s in span) / len(span))
            a = rows[t]
            bounded = min(max(ratio, 1 - eps), 1 + (eps if higher is None else higher))
            loss = max(-a * ratio, -a * bounded)
            dual = c_clip is not None and a < 0 and loss > c_clip * abs(a)
            if dual:
                assert c_clip is not None
                loss = c_clip * abs(a)
            if decoupled:
                weight = math.exp(sample.prox[t] - sample.behav[t])
                if cap is None or weight <= cap:
                    seen["weight"].append(weight)
                    loss *= weight
                else:
                    loss = 0.0
            total += loss
            seen["ratio"].append(ratio)
            seen["clip"].append(float(-a * ratio < -a * bounded))
            seen["dual"].append(float(dual))
    return total, seen


def packed(samples: list[Sample]) -> dict[str, torch.Tensor]:
    columns = {
        name: torch.tensor([x for sample in samples for x in getattr(sample, name)], dtype=torch.float32)
        for name in ("logp", "prox", "behav", "ref")
    }
    lengths = torch.tensor([0] + [len(sample.mask) for sample in samples], dtype=torch.int32)
    return columns | {
        "mask": torch.tensor([x for sample in samples for x in sample.mask], dtype=torch.bool),
        "cu": lengths.cumsum(0).int(),
    }


def flat(rows: list[list[float]]) -> list[float]:
    return [x for row in rows for x in row]


def close(ours: torch.Tensor, theirs: list[float], scale: float = 1.0) -> None:
    torch.testing.assert_close(ours.double(), torch.tensor(theirs, dtype=torch.float64), atol=1e-6 * scale, rtol=1e-6)


norms = st.fixed_dictionaries(
    {
        "mean_level": st.sampled_from(LEVELS),
        "std_level": st.sampled_from(LEVELS),
        "leave_one_out": st.booleans(),
        "unbiased": st.booleans(),
    }
)
seeds = st.integers(0, 10_000)


@given(seeds, norms)
def test_normalised_rewards_equal_the_loops(seed: int, options: dict[str, Any]) -> None:
    samples = random_batch(seed)
    rewards = torch.tensor([sample.reward for sample in samples], dtype=torch.float64)
    groups = [sample.group for sample in samples]
    group_B, count = dense_groups(groups, groups)
    ours = normalize_rewards(rewards, group_B, Norm(**options), groups=count, reduce=one_rank)
    close(ours, flat(loop_normalize([[sample.reward] for sample in samples], groups, **options)))


@given(
    seeds,
    norms,
    st.sampled_from([(0.0, "k1"), (0.1, "k1"), (0.1, "k2"), (0.1, "k3")]),
    st.sampled_from([(1.0, 1.0), (0.9, 0.95), (1.0, 0.0), (0.5, 1.0)]),
)
def test_advantages_equal_the_loops(
    seed: int, options: dict[str, Any], kl: tuple[float, str], discounts: tuple[float, float]
) -> None:
    samples = random_batch(seed)
    columns = packed(samples)
    rewards_T, _ = token_rewards(
        torch.tensor([sample.reward for sample in samples]),
        columns["mask"],
        columns["cu"],
        logp_T=columns["logp"],
        ref_logp_T=columns["ref"],
        kl_ctl=kl[0],
        estimator=kl[1],  # type: ignore[arg-type]
    )
    ours = gae(rewards_T, columns["mask"], columns["cu"], discount=discounts[0], gae_lambda=discounts[1])
    theirs = [loop_advantages(sample, sample.reward, *kl, *discounts) for sample in samples]
    close(ours, flat(theirs))

    groups = [sample.group for sample in samples]
    group_B, count = dense_groups(groups, groups)
    # Both get the same input: a small σ would amplify rounding of the previous step.
    exact = torch.tensor(flat(theirs), dtype=torch.float64)
    ours = normalize_advantages(
        exact, columns["mask"], columns["cu"], group_B, Norm(**options), groups=count, reduce=one_rank
    )
    answers = [
        [a for a, m in zip(row, sample.mask, strict=True) if m] for row, sample in zip(theirs, samples, strict=True)
    ]
    close(ours[columns["mask"]], flat(loop_normalize(answers, groups, **options)))
    assert not ours[~columns["mask"]].any()


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(("decoupled", "cap"), [(False, None), (True, None), (True, 1.5)])
@pytest.mark.parametrize(("eps", "higher", "c_clip"), [(0.2, None, None), (0.2, 0.28, 3.0), (0.4, None, 1.2)])
def test_losses_and_statistics_equal_the_loops(
    level: Any, decoupled: bool, cap: float | None, eps: float, higher: float | None, c_clip: float | None
) -> None:
    for seed in range(10):
        samples = random_batch(seed)
        columns = packed(samples)
        rng = random.Random(seed)
        advantages = [[rng.gauss(0, 1) for _ in sample.mask] for sample in samples]
        ours, stats = ppo_loss(
            columns["logp"].double(),
            prox_logp_T=columns["prox"],
            behav_logp_T=columns["behav"] if decoupled else None,
            advantages_T=torch.tensor(flat(advantages)),
            loss_mask_T=columns["mask"],
            cu_seqlens=columns["cu"],
            eps_clip=eps,
            eps_clip_higher=higher,
            c_clip=c_clip,
            behav_imp_weight_cap=cap,
            ratio_level=level,
        )
        theirs, seen = loop_loss(samples, advantages, eps, higher, c_clip, cap, decoupled, level)
        tokens = max(len(seen["ratio"]), 1)
        assert ours.item() / tokens == pytest.approx(theirs / tokens, abs=1e-6)
        for name, values in (
            ("importance_weight", seen["ratio"]),
            ("clip_ratio", seen["clip"]),
            ("dual_clip_ratio", seen["dual"]),
        ):
            assert stats[name][:2].tolist() == pytest.approx([sum(values), len(values)], rel=1e-5)
        if decoupled and seen["weight"]:
            expected = [sum(seen["weight"]), len(seen["weight"]), min(seen["weight"]), max(seen["weight"])]
            assert stats["behave_imp_weight"].tolist() == pytest.approx(expected, rel=1e-5)
            assert stats["unclipped_behave_tokens"][0].item() == len(seen["weight"])


@given(seeds)
def test_sapo_equals_the_loops(seed: int) -> None:
    samples = random_batch(seed)
    columns = packed(samples)
    rng = random.Random(seed)
    advantages = [[rng.gauss(0, 1) for _ in sample.mask] for sample in samples]
    ours, _ = sapo_loss(
        columns["logp"],
        old_logp_T=columns["behav"],
        advantages_T=torch.tensor(flat(advantages)),
        loss_mask_T=columns["mask"],
        cu_seqlens=columns["cu"],
    )
    theirs = 0.0
    for sample, row in zip(samples, advantages, strict=True):
        for t, masked_in in enumerate(sample.mask):
            if masked_in:
                tau = 1.0 if row[t] > 0 else 1.05
                ratio = math.exp(sample.logp[t] - sample.behav[t])
                theirs -= row[t] * 4 / tau / (1 + math.exp(-tau * (ratio - 1)))
    assert ours.item() / len(columns["mask"]) == pytest.approx(theirs / len(columns["mask"]), abs=1e-6)


@given(seeds, st.sampled_from([1e-4, 0.01, 0.05, 0.1, 0.3, 10.0]))
def test_m2po_masks_the_tokens_that_the_loop_masks(seed: int, threshold: float) -> None:
    columns = packed(random_batch(seed))
    kept = second_moment_mask(columns["prox"], columns["behav"], columns["mask"], threshold=threshold, reduce=one_rank)
    moments = [(float(m), t) for t, m in enumerate((columns["prox"] - columns["behav"]).square()) if columns["mask"][t]]
    rest = sorted(moments)
    while rest and math.fsum(m for m, _ in rest) >= threshold * len(rest):
        rest.pop()
    assert kept.nonzero().squeeze(1).tolist() == sorted(t for _, t in rest)
