"""Selection of groups to train on."""

from collections.abc import Sequence


def rewards_differ(rewards: Sequence[float]) -> bool:
    """Whether a group has different rewards. False for fewer than two samples.

    DAPO's dynamic sampling (arXiv:2503.14476, §3.2) rejects and replaces groups whose rewards are all equal: they have
    no gradient."""
    return len(set(rewards)) > 1
