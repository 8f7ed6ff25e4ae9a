"""Log-probs of a plain fp32 forward pass in transformers, as a reference for servers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM


@functools.cache
def _model(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def output_logprobs(directory: Path, prompt: list[int], output: list[int], temperature: float = 1.0) -> list[float]:
    """Log-prob of each token of `output` given all tokens before it."""
    with torch.no_grad():
        logits = _model(directory)(torch.tensor([prompt + output])).logits[0]
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    return [float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(output)]


def next_logprobs(directory: Path, ids: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Log-probs of every token after `ids`."""
    with torch.no_grad():
        logits = _model(directory)(torch.tensor([ids])).logits[0, -1]
    return torch.log_softmax(logits / temperature, dim=-1)


def greedy(directory: Path, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding of `count` tokens."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(_model(directory)(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]
