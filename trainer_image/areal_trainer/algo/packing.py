"""Split a batch over ranks, minibatches and microbatches. Plain Python, deterministic."""

import heapq
from collections.abc import Sequence


def balance_by_tokens(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Distribute sequences over ranks: longest first, each to the rank with the fewest tokens so far.

    Returns the indices of each rank in ascending order. No rank is empty if there are at least as many sequences.
    """
    parts: list[list[int]] = [[] for _ in range(ranks)]
    heap = [(0, 0, rank) for rank in range(ranks)]
    for index in _longest_first(lengths):
        tokens, sequences, rank = heapq.heappop(heap)
        parts[rank].append(index)
        heapq.heappush(heap, (tokens + lengths[index], sequences + 1, rank))
    return [sorted(part) for part in parts]


def split_minibatches(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Split into exactly `count` minibatches of similar token counts; some are empty if there are fewer sequences.

    Every rank calls this with the same count, since every rank runs the same number of optimizer steps.
    """
    return balance_by_tokens(lengths, count)


def pack_microbatches(
    lengths: Sequence[int], max_tokens: int, *, field: str = "actor.mb_spec.max_tokens_per_mb"
) -> list[list[int]]:
    """First-fit decreasing: microbatches of at most `max_tokens` tokens, indices in ascending order.

    Raises ValueError, naming `field`, for a sequence longer than `max_tokens`.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for index in _longest_first(lengths):
        length = lengths[index]
        if length > max_tokens:
            raise ValueError(
                f"{field} is {max_tokens}, but a sequence has {length} tokens: raise it to at least {length}, "
                "or lower gconfig.max_new_tokens or train_dataset.max_length"
            )
        chosen = next((i for i, left in enumerate(room) if left >= length), None)
        if chosen is None:
            chosen = len(bins)
            bins.append([])
            room.append(max_tokens)
        bins[chosen].append(index)
        room[chosen] -= length
    return [sorted(part) for part in bins]


def equalize_microbatches(bins: list[list[int]], lengths: Sequence[int], count: int) -> list[list[int]]:
    """Redistribute into exactly `count` microbatches, where `count` is the largest number that any rank needs.

    Repeatedly splits the heaviest microbatch of several sequences into two of similar token counts. If there are too
    few sequences, the rest are empty: for these the rank runs a dummy sequence of loss 0.
    """
    assert count >= len(bins), f"{len(bins)} microbatches cannot be merged into {count}"
    result = [list(part) for part in bins]
    while len(result) < count:
        divisible = [i for i, part in enumerate(result) if len(part) > 1]
        if not divisible:
            break
        heaviest = max(divisible, key=lambda i: (sum(lengths[j] for j in result[i]), -i))
        part = result[heaviest]
        halves = balance_by_tokens([lengths[j] for j in part], 2)
        result[heaviest : heaviest + 1] = [[part[j] for j in half] for half in halves]
    return result + [[] for _ in range(count - len(result))]


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
