"""The parts of a training step in isolation: generation without training, and training without generation."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from areal_api import names
from areal_api.config import GRPOConfig
from areal_api.load import read_resolved_config
from areal_trainer.batch import pack
from areal_trainer.data.dataset import load_hf_tokenizer, train_loader
from areal_trainer.engine import RemoteSGLangEngine
from areal_trainer.grpo import compute_advantages
from areal_trainer.model.policy import Policy
from areal_trainer.ranks import Ranks
from areal_trainer.reward.gsm8k import gsm8k_reward_fn
from areal_trainer.rollout.workflow import RLVRWorkflow
from areal_trainer.trajectory import Trajectory
from areal_trainer.weights.disk import publish_to_disk
from benchmarks.servers import sglang_server


@dataclass(frozen=True)
class Part:
    """Of one batch: seconds, and the CPU seconds of all processes that take part."""

    seconds: float
    cpu_s: float


@dataclass(frozen=True)
class Parts:
    """Medians over several batches."""

    generation: Part
    training: Part

    @property
    def slower_s(self) -> float:
        """Seconds of the slower part."""
        return max(self.generation.seconds, self.training.seconds)

    def text(self) -> str:
        """For a report."""
        cpu_s, cores = self.generation.cpu_s + self.training.cpu_s, os.cpu_count() or 1
        return (
            f"generation {self.generation.seconds:.2f}, training {self.training.seconds:.2f}; both use {cpu_s:.2f} CPU "
            f"seconds, {cpu_s / cores:.2f} of each of {cores} cores"
        )


def measure_parts(run: Path, *, batches: int) -> Parts:
    """Measure with the configuration and final weights of the run in ``run``."""
    config = read_resolved_config(names.config_file(run), GRPOConfig)
    model = max(names.checkpoints_dir(run).iterdir(), key=lambda path: path.stat().st_mtime)
    with sglang_server(names.config_file(run), model, run / "alone.log") as address:
        generated = _generate(config, address, batches)
    trained = _train(config, model, run / "alone", [batch for _, batch in generated])
    return Parts(_median([part for part, _ in generated]), _median(trained))


def _median(parts: list[Part]) -> Part:
    return Part(statistics.median(one.seconds for one in parts), statistics.median(one.cpu_s for one in parts))


class _Clock:
    """Measures a part from its creation."""

    def __init__(self) -> None:
        self._started, self._cpu_s = time.perf_counter(), _cpu_seconds()

    def part(self) -> Part:
        return Part(time.perf_counter() - self._started, _cpu_seconds() - self._cpu_s)


def _cpu_seconds() -> float:
    """CPU time of this process and of its children, the server's among them, since they started."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def _generate(config: GRPOConfig, address: str, batches: int) -> list[tuple[Part, list[Trajectory]]]:
    """Figures and samples of each batch, without the first, which warms up."""
    tokenizer = load_hf_tokenizer(config.tokenizer)
    loader = iter(train_loader(config.train_dataset, tokenizer, seed=config.seed))
    workflow = RLVRWorkflow(gsm8k_reward_fn, config.gconfig, tokenizer)
    engine = RemoteSGLangEngine(config.rollout, batch_size=config.consumer_batch_size)
    engine.initialize([address])
    results = []
    try:
        for _ in range(batches + 1):
            rows = next(loader)
            clock = _Clock()
            groups = engine.run_episodes(rows, workflow)
            results.append((clock.part(), [sample for group in groups for sample in group]))
    finally:
        engine.destroy()
    return results[1:]


def _train(config: GRPOConfig, model: Path, work: Path, batches: list[list[Trajectory]]) -> list[Part]:
    """Figures of a training step without its rollout for each batch, without the first."""
    actor = config.actor.model_copy(update={"path": str(model)})
    policy = Policy(actor, device="cpu", total_steps=1000, seed=config.seed, kl_penalty=config.kl_penalty)
    parts = []
    for samples in batches:
        clock = _Clock()
        batch = pack(samples)
        logp_T = policy.logprobs(batch) if policy.needs_logprobs else None
        advantages_T, _ = compute_advantages(
            batch, actor, config.gconfig, logp_T=logp_T, ref_logp_T=None, reduce=lambda values: values
        )
        policy.update(batch, advantages_T=advantages_T, prox_logp_T=logp_T)
        policy.version += 1
        publish_to_disk(policy, run=work, version=policy.version, dtype=policy.model.dtype, ranks=Ranks.current())
        parts.append(clock.part())
    return parts[1:]
