"""The parts of a training step in isolation: generation without training, and training without generation."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

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
class Parts:
    """Seconds per step, medians over several batches."""

    generation_s: float
    training_s: float

    def text(self) -> str:
        """For a report."""
        return f"generation {self.generation_s:.2f}, training {self.training_s:.2f}"


def measure_parts(run: Path, *, batches: int) -> Parts:
    """Measure with the configuration and final weights of the run in ``run``."""
    config = read_resolved_config(names.config_file(run), GRPOConfig)
    model = max(names.checkpoints_dir(run).iterdir(), key=lambda path: path.stat().st_mtime)
    with sglang_server(names.config_file(run), model, run / "alone.log") as address:
        generated = _generate(config, address, batches)
    seconds = _train(config, model, run / "alone", [batch for _, batch in generated])
    return Parts(statistics.median(s for s, _ in generated), statistics.median(seconds))


def _generate(config: GRPOConfig, address: str, batches: int) -> list[tuple[float, list[Trajectory]]]:
    """Seconds and samples of each batch, without the first, which warms up."""
    tokenizer = load_hf_tokenizer(config.tokenizer)
    loader = iter(train_loader(config.train_dataset, tokenizer, seed=config.seed))
    workflow = RLVRWorkflow(gsm8k_reward_fn, config.gconfig, tokenizer)
    engine = RemoteSGLangEngine(config.rollout, batch_size=config.consumer_batch_size)
    engine.initialize([address])
    results = []
    try:
        for _ in range(batches + 1):
            rows = next(loader)
            started = time.perf_counter()
            groups = engine.run_episodes(rows, workflow)
            results.append((time.perf_counter() - started, [sample for group in groups for sample in group]))
    finally:
        engine.destroy()
    return results[1:]


def _train(config: GRPOConfig, model: Path, work: Path, batches: list[list[Trajectory]]) -> list[float]:
    """Seconds of a training step without its rollout for each batch, without the first."""
    actor = config.actor.model_copy(update={"path": str(model)})
    policy = Policy(actor, device="cpu", total_steps=1000, seed=config.seed, kl_penalty=config.kl_penalty)
    seconds = []
    for samples in batches:
        started = time.perf_counter()
        batch = pack(samples)
        logp_T = policy.logprobs(batch) if policy.needs_logprobs else None
        advantages_T, _ = compute_advantages(
            batch, actor, config.gconfig, logp_T=logp_T, ref_logp_T=None, reduce=lambda values: values
        )
        policy.update(batch, advantages_T=advantages_T, prox_logp_T=logp_T)
        policy.version += 1
        publish_to_disk(policy, run=work, version=policy.version, dtype=policy.model.dtype, ranks=Ranks.current())
        seconds.append(time.perf_counter() - started)
    return seconds[1:]
