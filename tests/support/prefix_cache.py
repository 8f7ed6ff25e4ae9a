"""What SGLang's radix cache finds, if it has room for everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class PrefixCache:
    """The sequences that a server has processed, as a tree of tokens."""

    def __init__(self) -> None:
        self._root: dict[int, Any] = {}

    def find(self, prompt: Sequence[int]) -> int:
        """Number of tokens at the start of a prompt that are known; never its last one, which a server must process."""
        node, found = self._root, 0
        for token in prompt[:-1]:
            if token not in node:
                break
            node, found = node[token], found + 1
        return found

    def add(self, tokens: Sequence[int]) -> None:
        """Record a sequence that was processed."""
        node = self._root
        for token in tokens:
            node = node.setdefault(token, {})

    def clear(self) -> None:
        """Forget everything."""
        self._root = {}
