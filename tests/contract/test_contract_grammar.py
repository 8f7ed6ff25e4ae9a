"""Constrained decoding and candidates on the real server: why completions under a grammar are not trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from support.real_server import real_server
from support.reference_logprobs import output_logprobs
from support.tiny_policy import save_tiny_model

pytestmark = pytest.mark.real
PROMPT = [40, 41, 42]
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with one token per byte, so that it can write JSON."""
    directory = save_tiny_model(tmp_path_factory.mktemp("bytes"), vocab_size=260, max_position_embeddings=512)
    vocabulary = {"<pad>": 0, "<end>": 1, "<unknown>": 2}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<unknown>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def client(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        real_server(tmp_path_factory.mktemp("server"), model) as server,
        httpx.Client(base_url=f"http://{server.address}", timeout=120.0) as client,
    ):
        yield client


def generate(client: httpx.Client, *, top: int = 0, **sampling: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"input_ids": PROMPT, "sampling_params": sampling, "return_logprob": True}
    response = client.post("/generate", json=body | ({"top_logprobs_num": top} if top else {}))
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_a_schema_holds_and_its_log_probs_are_not_those_of_the_policy(client: httpx.Client, model: Path) -> None:
    answer = generate(client, max_new_tokens=64, json_schema=json.dumps(SCHEMA))
    assert answer["meta_info"]["finish_reason"]["type"] == "stop"
    assert isinstance(json.loads(answer["text"])["a"], bool)
    reported = [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]
    of_policy = output_logprobs(model, PROMPT, answer["output_ids"], 1.0)
    assert sum(reported) > sum(of_policy) + 10


def test_the_most_likely_tokens_are_reported_with_each_token(client: httpx.Client) -> None:
    meta = generate(client, top=3, max_new_tokens=4)["meta_info"]
    assert len(meta["output_top_logprobs"]) == 4
    for candidates in meta["output_top_logprobs"]:
        logprobs = [candidate[0] for candidate in candidates]
        assert logprobs == sorted(logprobs, reverse=True)
        assert len(logprobs) == 3


def test_an_impossible_schema_is_an_error_of_the_request(client: httpx.Client) -> None:
    body = {"input_ids": PROMPT, "sampling_params": {"max_new_tokens": 4, "json_schema": "{"}, "return_logprob": True}
    assert client.post("/generate", json=body).status_code == 400
    assert generate(client, max_new_tokens=2)["meta_info"]["completion_tokens"] == 2
