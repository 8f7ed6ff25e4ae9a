"""``grpo run`` with the real SGLang server and a real torchrun trainer, on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

from areal_api.load import load_experiment
from support.rollout_files import read_samples

ROOT = Path(__file__).parents[2]


def grpo_run(tmp_path: Path, *overrides: str, steps: int, experiment: str = "experiment.yaml") -> tuple[Path, str]:
    """Run a tiny experiment for a few steps; returns its run directory and terminal output."""
    command = [sys.executable, "-m", "areal_launcher.cli", "run", f"examples/tiny/{experiment}"]
    settings = [
        f"config.cluster.fileroot={tmp_path}",
        "config.trial_name=run",
        f"config.total_train_steps={steps}",
        "config.valid_dataset.limit=16",
        "config.rollout.dump_to_file=true",
    ]
    done = subprocess.run(
        [*command, *settings, *overrides], cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return tmp_path / load_experiment(ROOT / "examples/tiny" / experiment).metadata.name / "run", done.stdout


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def assert_valid(run: Path, *, steps: int, max_staleness: int) -> list[dict[str, Any]]:
    lines = lines_of(run)
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    for line in lines:
        assert line["staleness/max"] <= max_staleness
        assert line["grpo_actor/update_successful"] == 1.0
        # For the same weights and tokens, servers and trainer differ only by rounding.
        assert line.get("grpo_actor/rollout_logprob_diff_current/max", 0.0) < 1e-3
    summary = json.loads((run / "summary.json").read_text())
    assert summary["outcome"] == "succeeded"
    assert summary["steps"] == steps
    return lines


def assert_no_processes_left(run: Path) -> None:
    remaining = [
        process for process in psutil.process_iter(["cmdline"]) if str(run) in " ".join(process.info["cmdline"] or [])
    ]
    assert not remaining


def test_tiny_experiment_trains_and_writes_the_documented_files(tmp_path: Path) -> None:
    run, output = grpo_run(tmp_path, steps=4)
    lines = assert_valid(run, steps=4, max_staleness=2)
    assert "grpo_actor/rollout_logprob_diff_current/max" in lines[0]
    assert (run / "reward.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (run / "weights").iterdir()) == ["v3", "v4"]
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert AutoModelForCausalLM.from_pretrained(checkpoint).num_parameters() > 500_000
    samples = read_samples(run)
    added = AutoTokenizer.from_pretrained(checkpoint).added_tokens_decoder.values()
    special = {token.content for token in added if token.special}
    assert {step: len(rows) for step, rows in samples.items()} == dict.fromkeys((1, 2, 3, 4), 32 * 8)
    for row in samples[4]:
        # This tokenizer adds spaces when it decodes, and the text of a completion lacks its special tokens.
        tokens = [token.strip() for token in row["tokens"][row["prompt_tokens"] :]]
        assert "".join(row["tokens"][: row["prompt_tokens"]]).replace(" ", "") == row["prompt"].replace(" ", "")
        plain = "".join(token for token in tokens if token not in special)
        assert plain.replace(" ", "") == row["completion"].replace(" ", "")
        assert len(row["tokens"]) == len(row["advantages"]) == row["prompt_tokens"] + row["trained_tokens"]
    assert "succeeded" in output
    assert_no_processes_left(run)


def test_weights_are_updated_by_broadcast(tmp_path: Path) -> None:
    run, _ = grpo_run(tmp_path, "config.actor.weight_update_mode=distributed", "config.async_training=false", steps=3)
    lines = assert_valid(run, steps=3, max_staleness=0)
    assert all("grpo_actor/rollout_logprob_diff_current/max" in line for line in lines)
    assert [path.name for path in (run / "weights").iterdir()] == ["v0"]


@pytest.mark.parametrize(
    ("experiment", "setting"), [("experiment.yaml", "seed=1"), ("two-by-two.yaml", "actor.parallel.expert=2")]
)
def test_a_mixture_of_experts_trains_with_the_servers_experts(tmp_path: Path, experiment: str, setting: str) -> None:
    """The servers compute in float32 and the trainer in bfloat16, whose routers choose some other experts."""
    tiny = ROOT / "examples/tiny/model"
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    experts = {"num_experts": 16, "num_experts_per_tok": 4, "norm_topk_prob": True, "initializer_range": 0.2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    vocabulary = AutoConfig.from_pretrained(tiny).vocab_size
    torch.manual_seed(0)
    config = Qwen3MoeConfig(vocab_size=vocabulary, max_position_embeddings=512, **sizes, **heads, **experts, **ends)
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    settings = ("router_replay=true", "router_aux_loss_coef=0.01", "dtype=bfloat16", f"path={tmp_path / 'model'}")
    overrides = [f"config.{setting}", *(f"config.actor.{one}" for one in settings)]
    run, _ = grpo_run(tmp_path, *overrides, steps=3, experiment=experiment)
    for line in lines_of(run):
        numbers = {key.removeprefix("grpo_actor/"): value for key, value in line.items()}
        assert 0 < numbers["experts_replaced"] < 0.2
        assert numbers["rollout_logprob_diff/avg"] < numbers["rollout_logprob_diff_without_replay/avg"]
        assert numbers["router_aux_loss/avg"] > 0
        assert numbers["update_successful"] == 1.0
    assert_no_processes_left(run)


def test_two_ranks_and_two_servers_train(tmp_path: Path) -> None:
    run, _ = grpo_run(tmp_path, steps=3, experiment="two-by-two.yaml")
    assert_valid(run, steps=3, max_staleness=2)
    assert_no_processes_left(run)
