"""Estimates over the problems of an evaluation, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

Z_95 = 1.959964  # two-sided 95 % quantile of the normal distribution


@dataclass(frozen=True)
class Estimate:
    """A mean over problems. ``half_width`` of its 95 % confidence interval; None for a single problem."""

    mean: float
    half_width: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one value per problem.

    The interval is the normal approximation, mean ± 1.96 s/√n. Samples of a problem are not independent, so n counts
    problems. Raises ``ValueError`` without values.
    """
    if not values:
        raise ValueError("there is no problem to estimate from")
    half_width = Z_95 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate(fmean(values), half_width)


def pass_at(k: int, *, samples: int, solved: int) -> float:
    """Probability that at least one of ``k`` samples solves a problem that ``solved`` of ``samples`` samples solved.

    The unbiased estimator 1 − C(samples − solved, k) / C(samples, k) of Chen et al. 2021, equation 1. Raises
    ``ValueError`` unless 0 ≤ solved ≤ samples and 1 ≤ k ≤ samples.
    """
    if not (0 <= solved <= samples and 1 <= k <= samples):
        raise ValueError(f"k is {k}, samples {samples}, solved {solved}; 1 ≤ k ≤ samples and 0 ≤ solved ≤ samples")
    return 1.0 - math.comb(samples - solved, k) / math.comb(samples, k)


def reported_k(samples: int) -> list[int]:
    """The k of the reported pass@k: the powers of two below ``samples``, and ``samples``."""
    powers = [2**exponent for exponent in range(samples.bit_length()) if 2**exponent < samples]
    return [*powers, samples]
