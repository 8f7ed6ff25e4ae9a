"""Profiles of chosen steps."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from areal_api.tracing import TracingConfig
from areal_trainer.profiling import check_profiling, profiled
from areal_trainer.ranks import Ranks

RANKS = Ranks(1, 2, torch.device("cpu"))


def test_a_chosen_step_is_profiled_and_no_other(tmp_path: Path) -> None:
    config = TracingConfig(profile_steps=[2])
    for step in (1, 2, 3):
        with profiled(config, run=tmp_path, ranks=RANKS, step=step):
            torch.ones(64, 64) @ torch.ones(64, 64)
    [path] = (tmp_path / "profiles").iterdir()
    assert path.name == "step2-rank1.trace.json.gz"
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert any(event.get("name") == "aten::mm" for event in events)


def test_memory_is_recorded_on_gpus_only() -> None:
    check_profiling(TracingConfig(), RANKS)
    with pytest.raises(ValueError, match=r"tracing\.memory_steps is \[3\], but the trainer runs on cpu"):
        check_profiling(TracingConfig(memory_steps=[3]), RANKS)
