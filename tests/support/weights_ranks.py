"""A trainer that publishes to real servers and checks what they hold: ``torchrun … weights_ranks.py MODEL OUT MODE``.

Every rank trains and publishes; rank 0 writes what it saw to OUT/seen.json. The servers are AREAL_LLM_SERVER_ADDRS.
"""

from __future__ import annotations

import asyncio
import faulthandler
import hashlib
import json
import os
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from areal_api.config import RolloutConfig
from areal_api.generation import GenerationHyperparameters
from areal_trainer.engine import ModelRequest, ModelResponse, RemoteSGLangEngine
from areal_trainer.model.policy import Policy
from areal_trainer.publisher import Publisher
from areal_trainer.ranks import Ranks, joined
from areal_trainer.weights.disk import WeightUpdate
from support.policy_ranks import train
from support.reference_logprobs import output_logprobs
from support.tiny_policy import actor_config, random_trajectories

VERSIONS = 2
LONGEST_S = 300.0  # deadline for an answer, which takes 5 s on an idle machine
IN_FLIGHT = 32
PROMPT = [5, 9, 14, 33, 21]


def checksum(parts: list[torch.Tensor]) -> str:
    """Checksum of tensors that SGLang fuses into one, as /weights_checker computes it."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def expected(tensors: dict[str, torch.Tensor], size: int) -> list[dict[str, str]]:
    """Server-side name → checksum of the trainer's tensors, for each rank of a server of ``size`` ranks."""
    fused = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"}
    fused |= {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}
    parts: dict[str, list[str]] = {}
    for name in sorted(tensors, key=_order):
        *before, module, kind = name.split(".")
        parts.setdefault(".".join([*before, fused.get(module, module), kind]), []).append(name)
    return [
        {held: checksum([_share(name, tensors[name], rank, size) for name in of]) for held, of in parts.items()}
        for rank in range(size)
    ]


def _share(name: str, tensor: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """A server rank's shard of a tensor: rows, columns (row-parallel layers), or all of it."""
    if tensor.dim() == 1:
        return tensor
    return tensor.chunk(size, dim=1 if name.split(".")[-2] in ("o_proj", "down_proj") else 0)[rank]


def _order(name: str) -> int:
    """Position of a tensor within its fused tensor."""
    order = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]
    module = name.split(".")[-2]
    return order.index(module) if module in order else 0


def held_by(address: str) -> list[dict[str, str]]:
    """The checksums that a server reports for each of its ranks."""
    body = json.dumps({"action": "checksum"}).encode()
    request = urllib.request.Request(
        f"http://{address}/weights_checker", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer = json.load(response)
    assert answer["success"], answer
    ranks = sorted(answer["ranks"], key=lambda rank: rank["parallelism_info"][0]["tp_rank"])
    return [dict(rank["checksums"]) for rank in ranks]


def different(tensors: dict[str, torch.Tensor], held: list[dict[str, str]]) -> list[str]:
    """Rank and name of tensors that differ between server and trainer, or that only one of them has."""
    return [
        f"{rank}: {name}"
        for rank, (wanted, actual) in enumerate(zip(expected(tensors, len(held)), held, strict=True))
        for name in sorted(wanted.keys() | actual.keys())
        if wanted.get(name) != actual.get(name)
    ]


class Trainer:
    """One rank of the trainer."""

    def __init__(self, model: Path, out: Path, mode: Any, ranks: Ranks) -> None:
        self.out, self.ranks = out, ranks
        self.addresses = os.environ["AREAL_LLM_SERVER_ADDRS"].split(",")
        self.saved = {0: model}
        self.seen: list[dict[str, Any]] = []
        self.policy = Policy(actor_config(model), device="cpu", total_steps=10, seed=1)
        self.engine = RemoteSGLangEngine(RolloutConfig(consumer_batch_size=IN_FLIGHT, setup_timeout=120.0))
        self.engine.initialize(weights=WeightUpdate(0, path=model))
        engine = self.engine if ranks.is_first else None
        self.publisher = Publisher(self.policy, engine, mode=mode, run=out, dtype=torch.float32, ranks=ranks)

    def close(self) -> None:
        self.publisher.close()
        self.engine.destroy()

    def step(self, version: int) -> None:
        """Train, publish while requests are in flight, and check what the servers hold."""
        train(self.policy, random_trajectories(seed=version + 10 * self.ranks.rank))
        self.saved[version] = self.out / f"saved{version}"
        self.policy.save_hf(self.saved[version])
        answers: Any = self._ask(IN_FLIGHT, tokens=600) if self.ranks.is_first else None
        self.publisher.publish(version, wait=True)
        tensors = {name: tensor.clone() for name, tensor in self.policy.named_full_tensors()}
        if self.ranks.is_first:
            held = {address: held_by(address) for address in self.addresses}
            across = [future.result(LONGEST_S) for future in answers]
            fresh = [future.result(LONGEST_S) for future in self._ask(8, tokens=20)]
            self.seen.append(
                {
                    "differ": [different(tensors, ranks) for ranks in held.values()],
                    "tensors": [[len(rank) for rank in ranks] for ranks in held.values()],
                    "answers": len(across),
                    "tokens": sorted({len(answer.output_tokens) for answer in across}),
                    "versions": [sorted(set(answer.output_versions)) for answer in across],
                    "fresh_versions": sorted({v for answer in fresh for v in answer.output_versions}),
                    "logprob_diff": max(self._difference(answer) for answer in [*across, *fresh]),
                }
            )

    def _ask(self, count: int, *, tokens: int) -> list[Any]:
        gconfig = GenerationHyperparameters(max_new_tokens=tokens, ignore_eos=True, temperature=1.0)
        requests = [ModelRequest(input_ids=[*PROMPT, 3 + i], gconfig=gconfig) for i in range(count)]
        pool = ThreadPoolExecutor(count)
        futures = [pool.submit(asyncio.run, self.engine.agenerate(request)) for request in requests]
        pool.shutdown(wait=False)
        time.sleep(0.5)
        return futures

    def _difference(self, answer: ModelResponse) -> float:
        """Largest difference to transformers' log-probs, each token under its recorded version."""
        ids, made = answer.output_tokens, answer.output_versions
        of = {version: output_logprobs(self.saved[version], answer.input_tokens, ids) for version in set(made)}
        return max(abs(answer.output_logprobs[i] - of[version][i]) for i, version in enumerate(made))


def main(model: Path, out: Path, mode: str) -> None:
    faulthandler.enable()  # print a traceback if a signal kills a rank
    with joined("cpu") as ranks:
        trainer = Trainer(model, out, mode, ranks)
        for version in range(1, VERSIONS + 1):
            trainer.step(version)
        if ranks.is_first:
            result = {"steps": trainer.seen, "sglang": "sglang" in sys.modules}
            (out / "seen.json").write_text(json.dumps(result))
        trainer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
