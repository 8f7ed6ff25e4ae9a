"""After an update real servers of two ranks and of one hold the trainer's tensors, and every token says its version."""

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
from support.engines import engine_on, generate
from support.real_server import free_port, real_server
from support.reference_logprobs import output_logprobs
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
        env=os.environ | environment, capture_output=True, text=True, timeout=900, check=False,
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


# A server that was not there when the weights went out


class ChangingModel:
    """A policy as far as publishing sees it."""

    def __init__(self, model: Path, copies: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._copies = copies
        self._chance = torch.Generator().manual_seed(1)
        self.saved = {0: model}

    def change(self, version: int) -> None:
        """Other weights, kept as ``version``."""
        with torch.no_grad():
            for parameter in self._model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=self._chance)
        self.saved[version] = self._copies / f"saved{version}"
        self._model.save_pretrained(self.saved[version])

    def named_full_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self._model.named_parameters():
            yield name, parameter.detach()

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


def ask_until(engine: RemoteSGLangEngine, condition: Callable[[], bool]) -> list[ModelResponse]:
    """Ask for answers one after the other until ``condition`` holds; they come from whichever server is current."""
    deadline = time.monotonic() + 240.0
    answers = generate(engine)
    while not condition():
        assert time.monotonic() < deadline, engine._fleet.states()
        answers += generate(engine)
    return answers


def test_a_server_that_joins_or_restarts_loads_what_is_current_while_the_other_goes_on(
    tmp_path: Path, model: Path, addresses: list[str]
) -> None:
    policy, port = ChangingModel(model, tmp_path), free_port()
    stays, joins = addresses[1], f"127.0.0.1:{port}"

    def start() -> Any:
        return real_server(tmp_path / "late", model, port=port, max_total_tokens=16384)

    with engine_on(stays, joins, weights=WeightUpdate(0, path=model), setup_timeout=240.0) as engine:
        there, late = engine._fleet.servers

        def check(version: int) -> None:
            tensors = dict(policy.named_full_tensors())
            for address in (stays, joins):
                assert weights_ranks.different(tensors, weights_ranks.held_by(address)) == []
            for answer in generate(engine, n=16):
                assert answer.output_versions == [version] * len(answer.output_tokens)
                right = output_logprobs(policy.saved[version], answer.input_tokens, answer.output_tokens)
                assert answer.output_logprobs == pytest.approx(right, abs=1e-4)

        with publisher_of(policy, engine, "distributed", tmp_path) as publisher:
            policy.change(1)
            publisher.publish(1, wait=True)
            assert not (tmp_path / "weights").exists()  # v1 was broadcast: a server that missed it waits for v2
            with start():
                ask_until(engine, lambda: late.state == "behind")
                policy.change(2)
                publisher.publish(2, wait=True)
                ask_until(engine, lambda: late.state == "current")
                check(2)
        with publisher_of(policy, engine, "disk", tmp_path) as publisher:
            ask_until(engine, lambda: late.state == "gone")
            policy.change(3)
            publisher.publish(3, wait=True)
            stayed = there.incarnation
            with start():
                answers = ask_until(engine, lambda: late.state == "current")
                assert {version for answer in answers for version in answer.output_versions} == {3}
                assert there.incarnation == stayed  # it was current all the time
                check(3)
