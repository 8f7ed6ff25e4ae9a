"""The pieces of `make gpu-smoke` that a CPU can run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from areal_api.sizing.model_shape import ModelShape
from areal_api.sizing.report import Surroundings, size_up
from areal_trainer.model import varlen_attention
from hack.gpu_smoke import __main__ as smoke
from hack.gpu_smoke import checks, server, updates
from support.scripted_server import ScriptedServer

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
    seen = checks.attention(CPU, ["packed sdpa", "varlen"])
    assert [line.split(" differ")[0] for line in seen.splitlines()] == ["packed sdpa and sdpa", "varlen and sdpa"]


@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_attention_that_differs_fails(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    monkeypatch.setattr(varlen_attention, "varlen_attn", lambda *a, **k: kernel(*a, **k) * factor)
    with pytest.raises(checks.CheckFailed, match="varlen and sdpa differ by"):
        checks.attention(CPU, ["varlen"])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_servers_experiment_and_model_are_valid(tmp_path: Path, device: str) -> None:
    model = server.save_model(tmp_path / "model", torch.bfloat16)
    assert (model / "tokenizer.json").exists()
    assert server.experiment_for(device, model, tmp_path).spec.servers.device == device
    assert size_up(
        server.experiment_for(device, model, tmp_path).spec, ModelShape.of_directory(model), Surroundings()
    ).fits


def test_two_ranks_sum_and_broadcast() -> None:
    assert checks.collectives("cpu", 2) == "ranks: 2 on cpu, sum and broadcast are right"


def test_a_failing_command_is_reported_with_its_output() -> None:
    with pytest.raises(checks.CheckFailed, match=r"(?s)ended with status 3:.*the reason"):
        checks.output(["sh", "-c", "echo the reason >&2; exit 3"])
    with pytest.raises(checks.CheckFailed, match="/no/such/program"):
        checks.output(["/no/such/program"])


def test_the_report_names_the_commit_or_says_that_there_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert re.fullmatch(r"commit [0-9a-f]{7,}(, with changes)?|not a checkout of git", checks.commit())
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert checks.commit() == "not a checkout of git"


def test_without_nvcc_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    with pytest.raises(checks.CheckFailed, match="CUDA_HOME is /nowhere"):
        checks.compiler("sm_90a")


def test_the_expected_tensors_are_those_of_a_server_of_one_gpu() -> None:
    rows = {name: torch.full((2, 4), float(i)) for i, name in enumerate(("q_proj", "k_proj", "v_proj", "o_proj"))}
    held = updates.fused({f"model.layers.0.self_attn.{name}.weight": tensor for name, tensor in rows.items()})
    assert {name.split(".")[-2]: tuple(tensor.shape) for name, tensor in held.items()} == {
        "qkv_proj": (6, 4),
        "o_proj": (2, 4),
    }
    assert held["model.layers.0.self_attn.qkv_proj.weight"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_tensor_that_the_server_does_not_have_or_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"a.weight": torch.ones(4), "b.weight": torch.ones(4), "c.weight": torch.ones(4)}
    held = updates.checksums(tensors, "cpu") | {"b.weight": "0" * 16, "d.weight": "0" * 16}
    del held["c.weight"]
    monkeypatch.setattr(updates, "held_by", lambda address: held)
    assert updates.differing(tensors, "address", "cpu") == ["b.weight", "c.weight", "d.weight"]


@pytest.mark.parametrize("wrong", [False, True])
def test_the_tensors_after_an_update_are_compared_with_the_trainers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: bool
) -> None:
    """The server is scripted: what it holds is read from the files that it was told to load."""
    model = server.save_model(tmp_path / "model", torch.float32)

    def held(address: str) -> dict[str, str]:
        published = tmp_path / "run/disk/weights/v1"
        tensors = load_file((published if published.exists() else model) / "model.safetensors")
        if wrong and published.exists():
            tensors["model.norm.weight"] += 1
        return updates.checksums(tensors, "cpu")

    monkeypatch.setattr(updates, "held_by", held)
    with ScriptedServer() as scripted:
        arguments: tuple[Any, ...] = (scripted.address, model, tmp_path / "run", "cpu", "cpu", ["disk"])
        if wrong:
            with pytest.raises(SystemExit, match=r"disk: the server's tensors are not the trainer's: .*norm"):
                updates.main(*arguments)
        else:
            updates.main(*arguments)
            assert "update: disk: 18 tensors have the trainer's checksums" in capsys.readouterr().out


@pytest.fixture
def run_smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Runs the program with checks that only note their names; returns its status and the report."""

    def run(*arguments: str, gpus: int, hub: bool = True, failing: str = "") -> tuple[int, str]:
        def check(name: str) -> Callable[..., str]:
            def seen(*positional: Any, **keywords: Any) -> str:
                if name == failing:
                    raise RuntimeError("out of order")
                return f"{name} saw {positional} {keywords}"

            return seen

        names = ("environment", "compiler", "attention", "collectives", "server_start", "weight_updates", "training")
        for name in (*names, "gsm8k"):
            monkeypatch.setattr(checks, name, check(name))
        monkeypatch.setattr(checks, "has_compiler", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus))))
        monkeypatch.setattr(smoke, "hub_is_reachable", lambda: hub)
        report = tmp_path / "build" / "report.md"
        monkeypatch.setattr("sys.argv", ["gpu_smoke", "--report", str(report), *arguments])
        return smoke.main(), report.read_text()

    return run


def outcomes(report: str) -> dict[str, str]:
    lines = [line[3:].rpartition(" (")[0] for line in report.splitlines() if line.startswith("## ")]
    return dict(line.rsplit(": ", 1) for line in lines)


STEPS = [
    "environment",
    "compiler",
    "attention",
    "collectives",
    "server",
    "weight updates by disk and broadcast",
    "examples/tiny, updates by disk",
    "examples/tiny, updates by broadcast",
    "GSM8K",
]


def test_two_gpus_go_through_every_step(run_smoke: Callable[..., tuple[int, str]]) -> None:
    status, report = run_smoke(gpus=2)
    assert (status, list(outcomes(report))) == (0, STEPS)
    assert "'varlen'" in report
    assert "sm_90a" in report


def test_one_gpu_checks_what_needs_one_and_says_what_is_left(run_smoke: Callable[..., tuple[int, str]]) -> None:
    status, report = run_smoke(gpus=1)
    assert status == 0
    assert outcomes(report) == {
        **dict.fromkeys(["environment", "compiler", "attention", "server", "weight updates by disk"], "passed"),
        "collectives, broadcast, training": "not run",
    }


def test_a_cpu_goes_through_the_same_steps(run_smoke: Callable[..., tuple[int, str]]) -> None:
    status, report = run_smoke("--device=cpu", gpus=0)
    found = outcomes(report)
    assert found.pop("compiler, GPU kernels, NCCL") == "not run"
    assert (status, list(found)) == (0, [step for step in STEPS if step != "compiler"])
    assert "'varlen'" not in report


def test_a_step_that_fails_does_not_end_the_others(run_smoke: Callable[..., tuple[int, str]]) -> None:
    status, report = run_smoke(gpus=2, failing="server_start", hub=False)
    assert status == 1
    assert {name: outcome for name, outcome in outcomes(report).items() if outcome != "passed"} == {
        "server": "failed",
        "GSM8K": "not run",
    }
    assert "RuntimeError: out of order" in report


def test_without_a_gpu_what_needs_none_is_checked_and_the_status_is_2(
    run_smoke: Callable[..., tuple[int, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    status, report = run_smoke(gpus=0)
    assert status == 2
    assert outcomes(report) == {"environment": "passed", "compiler": "passed", "GPU": "not run"}
    assert "torch sees no GPU here" in capsys.readouterr().err
