"""After an update, real servers with one and two ranks have the trainer's tensors and report token versions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from areal_trainer.engine import ModelResponse, RemoteSGLangEngine
from areal_trainer.publisher import Publisher
from areal_trainer.ranks import Ranks
from areal_trainer.weights.disk import WeightUpdate
from support import weights_ranks
from support.engines import engine_on, generate, status_of
from support.real_server import free_port, real_server
from support.reference_logprobs import output_logprobs
from support.tiny_policy import save_tiny_model

pytestmark = pytest.mark.real
TENSOR_PARALLEL = {"a": 2, "b": 1}
# Multiples of 64, so that SGLang on a CPU adds no padding to its checksums.
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
def report(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model: Path, addresses: list[str]
) -> dict[str, Any]:
    """A trainer's observations of its servers after each update, with 1 or 2 ranks."""
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
        env=os.environ | environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-20000:]
    observations: dict[str, Any] = json.loads((out / "seen.json").read_text())
    assert len(observations["steps"]) == weights_ranks.VERSIONS
    return observations


def test_every_server_has_bitwise_equal_tensors(report: dict[str, Any]) -> None:
    for step in report["steps"]:
        assert step["tensors"] == [[18, 18], [18]]
        assert step["differ"] == [[], []]


def test_logprobs_match_the_reported_weight_version(report: dict[str, Any]) -> None:
    assert max(step["logprob_diff"] for step in report["steps"]) < 1e-4


def test_running_requests_continue_with_the_new_weights(report: dict[str, Any]) -> None:
    for version, step in enumerate(report["steps"], start=1):
        assert (step["answers"], step["tokens"]) == (weights_ranks.IN_FLIGHT, [600])
        assert all(set(versions) <= {version - 1, version} for versions in step["versions"])
        assert [version - 1, version] in step["versions"]
        assert step["fresh_versions"] == [version]


def test_trainer_does_not_import_sglang(report: dict[str, Any]) -> None:
    assert not report["sglang"]


# A server that was not running when the weights were published


class ChangingModel:
    """A fake policy with changing weights."""

    def __init__(self, model: Path, copies: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._copies = copies
        self._generator = torch.Generator().manual_seed(1)
        self.saved = {0: model}

    def change(self, version: int) -> None:
        """Change the weights and save them as ``version``."""
        with torch.no_grad():
            for parameter in self._model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=self._generator)
        self.saved[version] = self._copies / f"saved{version}"
        self._model.save_pretrained(self.saved[version])

    def named_full_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self._model.named_parameters():
            yield name, parameter.detach()

    def named_own_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self.named_full_tensors()

    def buffers(self) -> dict[str, torch.Tensor]:
        return {}

    def save_model_config(self, directory: Path) -> None:
        self._model.config.save_pretrained(directory)


@contextmanager
def publisher_of(policy: ChangingModel, engine: RemoteSGLangEngine, mode: Any, run: Path) -> Iterator[Publisher]:
    ranks = Ranks(0, 1, torch.device("cpu"))
    publisher = Publisher(policy, engine, mode=mode, run=run, dtype=torch.float32, ranks=ranks)
    try:
        yield publisher
    finally:
        publisher.close()


def generate_until(engine: RemoteSGLangEngine, condition: Callable[[], bool]) -> list[ModelResponse]:
    """Send requests one at a time until ``condition`` holds; any current server may serve them."""
    deadline = time.monotonic() + 240.0
    answers = generate(engine)
    while not condition():
        assert time.monotonic() < deadline, engine.servers()
        answers += generate(engine)
    return answers


def test_joining_or_restarted_server_loads_the_current_weights_while_the_other_serves(
    tmp_path: Path, model: Path, addresses: list[str]
) -> None:
    policy, port = ChangingModel(model, tmp_path), free_port()
    stays, joins = addresses[1], f"127.0.0.1:{port}"

    def start() -> Any:
        return real_server(tmp_path / "late", model, port=port, max_total_tokens=16384)

    with engine_on(stays, joins, weights=WeightUpdate(0, path=model), setup_timeout=240.0) as engine:

        def state() -> str:
            return status_of(engine, joins).state

        def check(version: int) -> None:
            tensors = dict(policy.named_full_tensors())
            for address in (stays, joins):
                assert weights_ranks.different(tensors, weights_ranks.held_by(address)) == []
            for answer in generate(engine, n=16):
                assert answer.output_versions == [version] * len(answer.output_tokens)
                expected = output_logprobs(policy.saved[version], answer.input_tokens, answer.output_tokens)
                assert answer.output_logprobs == pytest.approx(expected, abs=1e-4)

        with publisher_of(policy, engine, "distributed", tmp_path) as publisher:
            policy.change(1)
            publisher.publish(1, wait=True)
            assert not (tmp_path / "weights").exists()  # v1 was broadcast, so a server that missed it waits for v2
            with start():
                generate_until(engine, lambda: state() == "behind")
                policy.change(2)
                publisher.publish(2, wait=True)
                generate_until(engine, lambda: state() == "current")
                check(2)
        with publisher_of(policy, engine, "disk", tmp_path) as publisher:
            generate_until(engine, lambda: state() == "gone")
            policy.change(3)
            publisher.publish(3, wait=True)
            incarnation = status_of(engine, stays).incarnation
            with start():
                answers = generate_until(engine, lambda: state() == "current")
                assert {version for answer in answers for version in answer.output_versions} == {3}
                assert status_of(engine, stays).incarnation == incarnation  # it did not restart
                check(3)
