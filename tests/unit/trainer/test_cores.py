from __future__ import annotations

import os
from pathlib import Path

import pytest

from areal_trainer import cores


@pytest.mark.parametrize(
    ("limit", "ranks", "share"),
    [("max 100000", 4, 4), ("800000 100000", 4, 2), ("250000 100000", 1, 3), ("100000 100000", 8, 1), (None, 3, 5)],
)
def test_ranks_share_the_cores_of_their_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, ranks: int, share: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(cores, "CPU_LIMIT", tmp_path / "cpu.max")
    if limit is not None:
        (tmp_path / "cpu.max").write_text(limit + "\n")
    assert cores.share_of_cores(ranks) == share
