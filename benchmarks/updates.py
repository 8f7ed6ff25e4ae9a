"""Weight updates of two real servers, by file and by broadcast, from tensors in the trainer to loaded servers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModelForCausalLM

from areal_api.config import RolloutConfig
from areal_trainer.engine import RemoteSGLangEngine
from areal_trainer.publisher import Publisher
from areal_trainer.ranks import Ranks
from areal_trainer.weights.disk import WeightUpdate, publish_to_disk
from benchmarks.measure import Comparison, by_turns, rate, spread
from benchmarks.models import save_qwen3
from benchmarks.published import DTYPE, ModelPolicy, copy_published
from benchmarks.servers import configured_server

SERVERS = 2
MODES: tuple[Literal["disk", "distributed"], ...] = ("disk", "distributed")
# Layers, hidden size, vocabulary: 0.8 M parameters, and 134 M.
SIZES = ((4, 128, 64), (8, 1024, 32768))
LONGEST_S = 300.0


def run(*, rounds: int) -> list[Comparison]:
    """MB/s into each of the servers; the baseline copies the bytes once and makes the copy durable."""
    return [comparison for size in SIZES for comparison in _of_size(*size, rounds=rounds)]


def _of_size(layers: int, hidden: int, vocabulary: int, *, rounds: int) -> list[Comparison]:
    comparisons = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder)
        size = 2 * save_qwen3(path / "model", layers=layers, hidden=hidden, vocabulary=vocabulary) / 1e6
        sglang = {"dtype": "bfloat16", "max_total_tokens": 4096}
        addresses = [
            stack.enter_context(configured_server(path, path / "model", number, **sglang)) for number in range(SERVERS)
        ]
        policy = ModelPolicy(AutoModelForCausalLM.from_pretrained(path / "model", dtype=torch.float32))
        publish_to_disk(policy, run=path, version=1, dtype=DTYPE, ranks=Ranks.current())
        for mode in MODES:
            with _publisher(policy, addresses, path, mode) as publisher:
                versions = count(2)

                def update(publisher: Publisher = publisher, versions: Iterator[int] = versions) -> None:
                    publisher.publish(next(versions), wait=True)

                rates = by_turns(
                    lambda: rate(size, update), lambda: rate(size, lambda: copy_published(path)), rounds=rounds
                )
            work = f"{size:,.1f} MB of bfloat16 from float32 masters into {SERVERS} servers by {mode}"
            seconds = [spread([size / speed for speed in side]) for side in rates]
            notes = [f"seconds per update {seconds[0]}, per copy {seconds[1]}"]
            comparisons.append(
                Comparison("weights", work, "MB/s", rates[0], "copy of the file, with fsync", rates[1], notes=notes)
            )
    return comparisons


@contextmanager
def _publisher(
    policy: ModelPolicy, addresses: Sequence[str], run: Path, mode: Literal["disk", "distributed"]
) -> Iterator[Publisher]:
    engine = RemoteSGLangEngine(RolloutConfig(consumer_batch_size=1, setup_timeout=LONGEST_S))
    engine.initialize(list(addresses), weights=WeightUpdate(0, path=run / "model"))
    ranks = Ranks(0, 1, torch.device("cpu"))
    publisher = Publisher(policy, engine, mode=mode, run=run, dtype=DTYPE, ranks=ranks)
    try:
        yield publisher
    finally:
        publisher.close()
        engine.destroy()
