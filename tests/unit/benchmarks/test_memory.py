"""The simulation of a training step, on models of two layers, against what `grpo check` computes."""

from __future__ import annotations

import pytest

from benchmarks.memory import computed_bytes, qwen25, simulate


@pytest.mark.parametrize(("model", "ranks", "checkpointing"), [("Qwen2.5-7B", 8, True), ("Qwen2.5-1.5B", 1, False)])
def test_the_computed_peak_is_within_5_percent_of_the_simulated_one(
    model: str, ranks: int, checkpointing: bool
) -> None:
    config = qwen25(model, layers=2)
    simulated = simulate(config, ranks=ranks, tokens=8192, checkpointing=checkpointing)
    computed = computed_bytes(config, ranks=ranks, tokens=8192, checkpointing=checkpointing)
    assert computed == pytest.approx(simulated, rel=0.05)
