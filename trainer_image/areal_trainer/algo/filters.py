"""Which groups are worth training on."""

from collections.abc import Sequence


def rewards_differ(rewards: Sequence[float]) -> bool:
    """DAPO's dynamic sampling (arXiv:2503.14476, §3.2): a group whose rewards are all equal carries no gradient and is
    rejected, that is replaced by another. False also for a single sample or none."""
    return len(set(rewards)) > 1
