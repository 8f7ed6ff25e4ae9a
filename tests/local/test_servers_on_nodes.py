"""A server of two processes, as of two pods, answers like a server of one, and both processes end together."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from support.real_server import RealServer, free_port, real_server, wait_until_ready

MODEL = Path(__file__).parents[2] / "examples" / "tiny" / "model"
PROMPTS = [list(range(3, 3 + length)) for length in (1, 7, 40)]
END_S = 60.0


@contextmanager
def server_on_two_nodes(folder: Path) -> Iterator[tuple[RealServer, RealServer]]:
    """The two processes of a server with tensor parallelism 2: gloo connects them."""
    port = free_port()
    with ExitStack() as stack:
        nodes = []
        for index in (0, 1):
            more = ["--nodes", "2", "--leaders", "127.0.0.1", "--group-port", str(port), "--index", str(index)]
            start = real_server(
                folder / str(index), MODEL, tensor_parallel=2, more=more, wait=False, max_total_tokens=16384
            )
            nodes.append(stack.enter_context(start))
        for node in nodes:
            wait_until_ready(node)
        yield nodes[0], nodes[1]


def answers(server: RealServer) -> list[Any]:
    """Greedy tokens with their log-probs, and the log-probs of the prompts."""
    sampling = {"temperature": 0, "max_new_tokens": 16, "ignore_eos": True}
    results = []
    for prompt in PROMPTS:
        body = {"input_ids": prompt, "sampling_params": sampling, "return_logprob": True, "logprob_start_len": 0}
        answer = httpx.post(f"http://{server.address}/generate", json=body, timeout=120.0)
        answer.raise_for_status()
        meta = answer.json()["meta_info"]
        results.append((meta["output_token_logprobs"], meta["input_token_logprobs"][1:]))
    return results


def update(server: RealServer, model: Path) -> None:
    """Load other weights, as the trainer does after a step."""
    body = {"model_path": str(model), "weight_version": "v1", "flush_cache": True}
    answer = httpx.post(f"http://{server.address}/update_weights_from_disk", json=body, timeout=120.0)
    answer.raise_for_status()
    assert answer.json()["success"], answer.text


def changed_model(folder: Path) -> Path:
    """The model with other weights."""
    shutil.copytree(MODEL, folder)
    for file in folder.glob("*.safetensors"):
        weights = load_file(file)
        generator = torch.Generator().manual_seed(0)
        changed = {name: one + 0.02 * torch.randn(one.shape, generator=generator) for name, one in weights.items()}
        save_file(changed, file, metadata={"format": "pt"})
    return folder


def assert_equal(got: list[Any], expected: list[Any]) -> None:
    """Equal tokens, with equal log-probs."""
    for (tokens, prompt), (tokens_of_one, prompt_of_one) in zip(got, expected, strict=True):
        assert [token for _, token, _ in tokens] == [token for _, token, _ in tokens_of_one]
        for values, wanted in ((tokens, tokens_of_one), (prompt, prompt_of_one)):
            assert [value for value, _, _ in values] == pytest.approx([value for value, _, _ in wanted], abs=1e-4)


def test_a_server_of_two_processes_has_the_log_probs_of_one_and_ends_as_one(tmp_path: Path) -> None:
    model = changed_model(tmp_path / "model")
    with real_server(tmp_path / "one", MODEL, max_total_tokens=16384) as one:
        before = answers(one)
        update(one, model)
        after = answers(one)
    assert before != after
    with server_on_two_nodes(tmp_path / "two") as (first, second):
        assert_equal(answers(first), before)
        update(first, model)
        assert_equal(answers(first), after)
        second.process.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + END_S
        while first.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert first.process.returncode is not None, "the first node outlived the second"


def test_terminating_either_node_ends_both_without_an_error(tmp_path: Path) -> None:
    with server_on_two_nodes(tmp_path) as (first, second):
        second.process.terminate()
        for node in (first, second):
            node.process.wait(END_S)
        assert first.process.returncode == 0
