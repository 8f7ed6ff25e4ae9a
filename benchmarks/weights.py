"""Publishing weights and reading them back, compared with copying the file; then updates of real servers."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from areal_trainer.ranks import Ranks
from areal_trainer.weights.disk import publish_to_disk
from benchmarks import publishing, updates
from benchmarks.measure import Comparison, by_turns, rate
from benchmarks.models import save_qwen3
from benchmarks.published import DTYPE, ModelPolicy, copy_published


def run(*, small: bool, rounds: int) -> list[Comparison]:
    """GB/s; the baseline copies the file and makes the copy durable. ``small`` leaves the servers out."""
    disable_progress_bar()
    files = _files(small=small, rounds=rounds) + publishing.run(small=small, rounds=rounds)
    return files + ([] if small else updates.run(rounds=rounds))


def _files(*, small: bool, rounds: int) -> list[Comparison]:
    """Publishing with loading, and publishing alone."""
    layers, hidden, vocabulary = (1, 64, 64) if small else (16, 1024, 32768)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        parameters = save_qwen3(path / "model", layers=layers, hidden=hidden, vocabulary=vocabulary)
        policy = ModelPolicy(AutoModelForCausalLM.from_pretrained(path / "model", dtype=torch.float32))
        receiver = AutoModelForCausalLM.from_pretrained(path / "model", dtype=DTYPE)
        size = 2 * parameters / 1e9
        comparisons = []
        for what, ours, baseline, goal in (
            ("publish and load", lambda: _load(receiver, _publish(policy, path)), lambda: copy_published(path), 0.8),
            ("publish", lambda: _publish(policy, path), lambda: copy_published(path), None),
        ):
            _publish(policy, path)
            rates = by_turns(lambda: rate(size, ours), lambda: rate(size, baseline), rounds=rounds)  # noqa: B023
            work = f"{what} {1000 * size:,.0f} MB of bfloat16 from float32 masters, checksummed and durable"
            comparisons.append(
                Comparison("weights", work, "GB/s", rates[0], "copy of the file, with fsync", rates[1], goal=goal)
            )
        return comparisons


def _publish(policy: ModelPolicy, run: Path) -> Path:
    return publish_to_disk(policy, run=run, version=1, dtype=DTYPE, ranks=Ranks.current())


def _load(receiver: PreTrainedModel, directory: Path) -> None:
    """Load like a server: map every tensor and copy it into its parameter."""
    parameters = dict(receiver.named_parameters())
    with safe_open(directory / "model.safetensors", framework="pt") as file, torch.no_grad():
        for name in file.keys():  # noqa: SIM118
            parameters[name].copy_(file.get_tensor(name))
