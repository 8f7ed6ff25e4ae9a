"""Shapes of published models by their name on the hub, for machines that cannot read it.

Every row is the config.json of its repository. What is not listed is not guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from areal_api.sizing.families import FAMILIES
from areal_api.sizing.model_shape import ModelShape


@dataclass(frozen=True)
class _Family:
    """Models of one type. ``sizes``: hidden, intermediate, layers, heads, key-value heads, head size,
    vocabulary and whether the embeddings are tied, by the part of the name that ``pattern`` captures."""

    pattern: re.Pattern[str]
    sizes: dict[str, tuple[int, int, int, int, int, int, int, bool]]
    kind: str = "llama"


_FAMILIES = (
    _Family(
        re.compile(r"Qwen/Qwen2\.5-([\d.]+B)(?:-Instruct)?"),
        {
            "0.5B": (896, 4864, 24, 14, 2, 64, 151_936, True),
            "1.5B": (1536, 8960, 28, 12, 2, 128, 151_936, True),
            "3B": (2048, 11_008, 36, 16, 2, 128, 151_936, True),
            "7B": (3584, 18_944, 28, 28, 4, 128, 152_064, False),
            "14B": (5120, 13_824, 48, 40, 8, 128, 152_064, False),
            "32B": (5120, 27_648, 64, 40, 8, 128, 152_064, False),
            "72B": (8192, 29_568, 80, 64, 8, 128, 152_064, False),
        },
        kind="qwen2",
    ),
    _Family(
        re.compile(r"Qwen/Qwen3-([\d.]+B)(?:-Base)?"),
        {
            "0.6B": (1024, 3072, 28, 16, 8, 128, 151_936, True),
            "1.7B": (2048, 6144, 28, 16, 8, 128, 151_936, True),
            "4B": (2560, 9728, 36, 32, 8, 128, 151_936, True),
            "8B": (4096, 12_288, 36, 32, 8, 128, 151_936, False),
            "14B": (5120, 17_408, 40, 40, 8, 128, 151_936, False),
            "32B": (5120, 25_600, 64, 64, 8, 128, 151_936, False),
        },
        kind="qwen3",
    ),
    _Family(
        re.compile(r"meta-llama/(?:Meta-)?Llama-3(?:\.[123])?-([\d.]+B)(?:-Instruct)?"),
        {
            "1B": (2048, 8192, 16, 32, 8, 64, 128_256, True),
            "3B": (3072, 8192, 28, 24, 8, 128, 128_256, True),
            "8B": (4096, 14_336, 32, 32, 8, 128, 128_256, False),
            "70B": (8192, 28_672, 80, 64, 8, 128, 128_256, False),
        },
    ),
    _Family(
        re.compile(r"HuggingFaceTB/SmolLM2-([\d.]+[BM])(?:-Instruct)?"),
        {
            "135M": (576, 1536, 30, 9, 3, 64, 49_152, True),
            "360M": (960, 2560, 32, 15, 5, 64, 49_152, True),
            "1.7B": (2048, 8192, 24, 32, 32, 64, 49_152, True),
        },
    ),
)


def known_shape(name: str) -> ModelShape | None:
    """The shape of a published model; None if it is not in the table. The longest sequence is not in it."""
    for family in _FAMILIES:
        found = family.pattern.fullmatch(name)
        if found is None or found[1] not in family.sizes:
            continue
        hidden, intermediate, layers, heads, kv_heads, head_dim, vocabulary, tied = family.sizes[found[1]]
        return ModelShape(
            hidden=hidden,
            intermediate=intermediate,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocabulary=vocabulary,
            tied=tied,
            longest=None,
            kind=family.kind,
            family=FAMILIES[family.kind],
        )
    return None
