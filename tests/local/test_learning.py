"""Asynchronous training learns as well as synchronous training: a short form of ``python -m benchmarks learning``."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from areal_api import health
from benchmarks.learning_runs import experiment, task_files
from benchmarks.runs import TINY
from support.forked_trainer import ForkedTrainer
from support.real_server import real_server

pytestmark = pytest.mark.real
SEEDS = (1, 2, 3)
STEPS = 12
EDGE = 3  # first and last steps whose rewards are averaged
TOLERANCE = 0.15  # samples are up to two versions old, and three seeds vary; the benchmark measures the difference


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with real_server(tmp_path_factory.mktemp("server"), TINY / "model", max_total_tokens=16384) as server:
        yield server.address


@pytest.fixture(scope="module")
def trainer() -> Iterator[ForkedTrainer]:
    with ForkedTrainer() as forked:
        yield forked


def rewards_of(trainer: ForkedTrainer, address: str, where: Path, mode: str, seed: int) -> list[float]:
    """Mean reward of each step of a run, whose policy's health raised no alarm."""
    run = where / f"{mode}-{seed}"
    config = experiment(task_files("tiny", where), "defaults", mode, seed=seed, steps=STEPS, run=run)["spec"]["config"]
    file = where / f"{mode}-{seed}.yaml"
    file.write_text(yaml.safe_dump(config))
    env = {
        "AREAL_CONFIG": str(file),
        "AREAL_RUN_DIR": str(run),
        "AREAL_LLM_SERVER_ADDRS": address,
        "AREAL_DEVICE": "cpu",
    }
    log = where / f"{mode}-{seed}.log"
    assert trainer.run(env, log=log) == 0, log.read_text()[-4000:]
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert [health.warnings_of(line) for line in lines] == [()] * STEPS
    rewards = [line["task_reward/avg"] for line in lines]
    print(mode, seed, [round(reward, 2) for reward in rewards], flush=True)
    return rewards


def test_asynchronous_training_learns_as_well_as_synchronous_training(
    trainer: ForkedTrainer, address: str, tmp_path: Path
) -> None:
    runs = {mode: [rewards_of(trainer, address, tmp_path, mode, seed) for seed in SEEDS] for mode in ("sync", "eta2")}
    first = {mode: statistics.fmean(r for run in runs[mode] for r in run[:EDGE]) for mode in runs}
    last = {mode: statistics.fmean(r for run in runs[mode] for r in run[-EDGE:]) for mode in runs}
    assert last["sync"] > first["sync"] + 0.1
    assert last["eta2"] > last["sync"] - TOLERANCE
