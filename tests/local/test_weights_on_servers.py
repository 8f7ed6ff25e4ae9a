"""After an update real servers, of two ranks and of one, hold the trainer's tensors bit for bit; every token says its version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support import weights_ranks
from support.real_server import real_server
from support.tiny_policy import save_tiny_model

pytestmark = pytest.mark.real
TENSOR_PARALLEL = {"a": 2, "b": 1}
# Multiples of 64, which SGLang on a CPU need not pad: what it adds would be in its checksums.
SIZES = {"vocab_size": 128, "intermediate_size": 128, "max_position_embeddings": 1024, "initializer_range": 0.1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), **SIZES)


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("servers")
    with ExitStack() as stack:
        servers = [
            stack.enter_context(real_server(folder / name, model, tensor_parallel=size, max_total_tokens=16384))
            for name, size in TENSOR_PARALLEL.items()
        ]
        yield [server.address for server in servers]


@pytest.fixture(scope="module", params=[("disk", 1), ("disk", 2), ("distributed", 1), ("distributed", 2)])
def seen(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model: Path, addresses: list[str]
) -> dict[str, Any]:
    """What a trainer of 1 or 2 ranks saw of its servers after each of its updates."""
    mode, ranks = request.param
    out = tmp_path_factory.mktemp(f"{mode}{ranks}")
    script = Path(weights_ranks.__file__)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {
        "PYTHONPATH": str(script.parent.parent),
        "OMP_NUM_THREADS": "1",
        "AREAL_LLM_SERVER_ADDRS": ",".join(addresses),
    }
    done = subprocess.run(
        [*torchrun, str(script), str(model), str(out), mode],
        env=os.environ | environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-20000:]
    told: dict[str, Any] = json.loads((out / "seen.json").read_text())
    assert len(told["steps"]) == weights_ranks.VERSIONS
    return told


def test_every_server_holds_the_trainers_tensors_bit_for_bit(seen: dict[str, Any]) -> None:
    for step in seen["steps"]:
        assert step["tensors"] == [[18, 18], [18]]
        assert step["differ"] == [[], []]


def test_logprobs_are_those_of_the_version_that_made_the_token(seen: dict[str, Any]) -> None:
    assert max(step["logprob_diff"] for step in seen["steps"]) < 1e-4


def test_requests_under_way_are_not_lost_and_go_on_under_the_new_weights(seen: dict[str, Any]) -> None:
    for version, step in enumerate(seen["steps"], start=1):
        assert (step["answers"], step["tokens"]) == (weights_ranks.UNDER_WAY, [600])
        assert all(set(versions) <= {version - 1, version} for versions in step["versions"])
        assert [version - 1, version] in step["versions"]
        assert step["fresh_versions"] == [version]


def test_the_trainer_needs_no_sglang(seen: dict[str, Any]) -> None:
    assert not seen["sglang"]
