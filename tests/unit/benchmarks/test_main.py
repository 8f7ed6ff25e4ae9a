"""Each benchmark runs at a tiny size and prints its ratio; the measured values are not meaningful."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import NAMED, NAMES, main

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["rollout", "rewards", "trainer", "weights", "executor", "gateway", "affinity"])
def test_a_benchmark_prints_a_ratio_to_its_named_baseline(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--small", "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"^{name}: .*; 1 rounds$", out, re.MULTILINE)
    assert re.search(r"^  ratio +\d+\.\d\d", out, re.MULTILINE)


def test_an_unknown_benchmark_is_refused_with_the_known_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["rolout"])
    assert ended.value.code == 2
    known = "rollout, rewards, trainer, weights, memory, executor, freshness, peers, learning, gateway, affinity, "
    known += "reconcile, faults, "
    assert f"choose from {known}" in capsys.readouterr().err


def test_every_benchmark_can_be_imported_without_the_paths_of_the_tests() -> None:
    modules = ", ".join(f"benchmarks.{name}" for name in NAMES + NAMED)
    subprocess.run([sys.executable, "-c", f"import {modules}"], cwd=ROOT, check=True, timeout=300)
