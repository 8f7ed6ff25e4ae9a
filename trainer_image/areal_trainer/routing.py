"""The experts that servers chose for the tokens of a sample, as SGLang's ``return_routed_experts`` reports them."""

# T tokens, D layers of the model, L of them with experts, K experts of a token

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

Experts = NDArray[np.unsignedinteger]  # [T, L, K]


@dataclass(frozen=True)
class Routing:
    """The shape of a model's choices of experts."""

    layers: int  # D
    with_experts: tuple[int, ...]  # numbers of the L layers
    top_k: int
    experts: int  # of a layer

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The smallest type that holds the number of an expert."""
        return np.uint8 if self.experts <= 256 else np.uint16

    @property
    def shape(self) -> tuple[int, int]:
        """L and K."""
        return len(self.with_experts), self.top_k

    def decode(self, answer: bytes | None, tokens: int) -> Experts:
        """The choices for ``tokens`` tokens in a server's answer, int32 [T, D, K] in memory order.

        Raises ``ValueError`` for another size, numbers of experts that the model does not have, and an expert that
        occurs twice for a token.
        """
        if answer is None:
            raise ValueError(
                "a server returned no routed experts, which actor.router_replay trains with; start the servers with "
                "the same configuration, or with the argument enable_return_routed_experts"
            )
        expected = tokens * self.layers * self.top_k * 4
        if len(answer) != expected:
            raise ValueError(
                f"a server returned {len(answer)} bytes of routed experts instead of {expected} for {tokens} tokens × "
                f"{self.layers} layers × {self.top_k} experts; it runs another model than actor.path"
            )
        chosen_TDK = np.frombuffer(answer, dtype="<i4").reshape(tokens, self.layers, self.top_k)
        chosen_TLK = chosen_TDK[:, list(self.with_experts)]
        if tokens and not 0 <= int(chosen_TLK.min()) <= int(chosen_TLK.max()) < self.experts:
            raise ValueError(
                f"a server chose experts {chosen_TLK.min()} … {chosen_TLK.max()}, but the model has 0 … "
                f"{self.experts - 1}"
            )
        columns = [chosen_TLK[:, :, k] for k in range(self.top_k)]
        for k, column in enumerate(columns):
            if any((column == other).any() for other in columns[:k]):
                raise ValueError("a server chose an expert twice for one token of a layer")
        return chosen_TLK.astype(self.dtype)


class EncodedExperts(msgspec.Struct, frozen=True):
    """Choices of experts as the session gateway carries them."""

    data: bytes
    layers: int  # L
    top_k: int
    item_bytes: int  # of the number of an expert

    @classmethod
    def of(cls, experts: Experts | None) -> EncodedExperts | None:
        """Encode choices, if there are any."""
        if experts is None:
            return None
        _, layers, top_k = experts.shape
        return cls(experts.tobytes(), layers, top_k, experts.itemsize)

    def decoded(self) -> Experts:
        """The choices [T, L, K]."""
        return np.frombuffer(self.data, dtype=f"<u{self.item_bytes}").reshape(-1, self.layers, self.top_k)


def recorded_until(parts: list[tuple[int, Experts | None]]) -> Experts | None:
    """The choices of a sequence from those of its turns, each with all that precedes it.

    ``parts`` are the ends of the turns, in order, with what a server reported after each: [end − 1, L, K]. A token
    keeps the choice of the turn in which it was first processed, which its log-probs depend on. None without any.
    """
    blocks: list[Experts] = []
    known = 0
    for end, chosen_TLK in parts:
        if chosen_TLK is None:
            continue
        assert len(chosen_TLK) == end - 1
        blocks.append(chosen_TLK[known:])
        known = end - 1
    return np.concatenate(blocks) if blocks else None
