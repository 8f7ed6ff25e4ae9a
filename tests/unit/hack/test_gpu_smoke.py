"""The pieces of `make gpu-smoke` that a CPU can run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from areal_trainer.model import varlen_attention
from hack.gpu_smoke import __main__ as smoke
from hack.gpu_smoke import checks

CPU = torch.device("cpu")


def kernel(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, *_: Any, scale: Any, **__: Any) -> torch.Tensor:
    """What the GPU's kernel computes: each sequence alone, its causal mask aligned with the end of the keys."""
    parts = []
    for i in range(len(cu_q) - 1):
        query, (key, value) = q[cu_q[i] : cu_q[i + 1]], (x[cu_k[i] : cu_k[i + 1]] for x in (k, v))
        mask = torch.ones(len(query), len(key), dtype=torch.bool).tril(len(key) - len(query))
        heads = torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(0, 1).unsqueeze(0) for x in (query, key, value)), attn_mask=mask, scale=scale, enable_gqa=True
        )
        parts.append(heads[0].transpose(0, 1))
    return torch.cat(parts)


def test_attention_agrees_with_the_kernels_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen_attention, "varlen_attn", kernel)
    assert "differ by at most 0.0" in checks.attention(CPU)


@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_attention_that_differs_fails(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    monkeypatch.setattr(varlen_attention, "varlen_attn", lambda *a, **k: kernel(*a, **k) * factor)
    with pytest.raises(checks.CheckFailed, match="varlen and sdpa differ by"):
        checks.attention(CPU)


def test_two_ranks_sum_and_broadcast() -> None:
    assert checks.collectives("cpu", 2) == "ranks: 2 on cpu, sum and broadcast are right"


def test_a_failing_command_is_reported_with_its_output() -> None:
    with pytest.raises(checks.CheckFailed, match=r"(?s)ended with status 3:.*the reason"):
        checks.output(["sh", "-c", "echo the reason >&2; exit 3"])
    with pytest.raises(checks.CheckFailed, match="/no/such/program"):
        checks.output(["/no/such/program"])


def test_without_nvcc_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    with pytest.raises(checks.CheckFailed, match="CUDA_HOME is /nowhere"):
        checks.compiler("sm_90a")


def test_a_machine_without_a_gpu_checks_the_rest_writes_the_report_and_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> str:
        raise RuntimeError("out of order")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(smoke, "without_gpu", lambda: [("one", lambda: "seen"), ("two", broken)])
    monkeypatch.setattr("sys.argv", ["gpu_smoke", "--report", str(tmp_path / "build" / "report.md")])
    assert smoke.main() == 2
    written = (tmp_path / "build" / "report.md").read_text()
    assert "## one: passed" in written
    assert "## two: failed" in written
    assert "RuntimeError: out of order" in written
    assert "torch sees no GPU here" in capsys.readouterr().err
