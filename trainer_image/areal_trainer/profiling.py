"""Torch's profile and the allocations of GPU memory of chosen steps, in files of ``profiles/``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from areal_api import names
from areal_api.tracing import TracingConfig
from areal_trainer.ranks import Ranks

logger = logging.getLogger(__name__)
MAX_MEMORY_EVENTS = 200_000


def check_profiling(config: TracingConfig, ranks: Ranks) -> None:
    """Raise ``ValueError`` for allocations of memory that this device does not record."""
    if config.memory_steps and ranks.device.type != "cuda":
        raise ValueError(
            f"tracing.memory_steps is {config.memory_steps}, but the trainer runs on {ranks.device.type}, whose "
            "allocations torch does not record; leave it out"
        )


@contextmanager
def profiled(config: TracingConfig, *, run: Path, ranks: Ranks, step: int) -> Iterator[None]:
    """Record the block if ``step`` is chosen, into one file per rank."""
    with ExitStack() as stack:
        if step in config.profile_steps:
            stack.enter_context(_profile(_file(run, step, ranks, "trace.json.gz")))
        if step in config.memory_steps:
            stack.enter_context(_allocations(_file(run, step, ranks, "memory.pickle")))
        yield


@contextmanager
def _profile(path: Path) -> Iterator[None]:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities, record_shapes=True) as recorded:
        yield
    recorded.export_chrome_trace(str(path))
    logger.info("wrote %s; open it in https://ui.perfetto.dev", path)


@contextmanager
def _allocations(path: Path) -> Iterator[None]:
    torch.cuda.memory._record_memory_history(max_entries=MAX_MEMORY_EVENTS)
    try:
        yield
        torch.cuda.memory._dump_snapshot(str(path))
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    logger.info("wrote %s; open it in https://docs.pytorch.org/memory_viz", path)


def _file(run: Path, step: int, ranks: Ranks, suffix: str) -> Path:
    directory = names.profiles_dir(run)
    directory.mkdir(parents=True, exist_ok=True)
    return directory / f"step{step}-rank{ranks.rank}.{suffix}"
