"""Weight updates of a real server, compared with what the trainer sent: ``python -m hack.gpu_smoke.updates``.

One process plays the trainer: it changes every tensor of a small model, publishes it through files and by broadcast,
and compares the checksum of each tensor that the server reports with its own.
"""

from __future__ import annotations

import hashlib
import json
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM

from areal_api.config import RolloutConfig
from areal_trainer.engine import RemoteSGLangEngine
from areal_trainer.publisher import Publisher
from areal_trainer.ranks import joined
from areal_trainer.weights.disk import WeightUpdate

ANSWER_S = 300.0
# Tensors that SGLang fuses into one, in their order.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


class ChangingModel:
    """What the publisher asks of a policy, for a model whose weights change without training."""

    def __init__(self, model: Path, *, device: torch.device, dtype: torch.dtype) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(device)
        self._generator = torch.Generator().manual_seed(1)

    def change(self) -> None:
        """Change every weight."""
        with torch.no_grad():
            for parameter in self._model.parameters():
                noise = torch.randn(parameter.shape, generator=self._generator)
                parameter += (0.05 * noise).to(parameter)

    def named_full_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors under their names in the checkpoint."""
        for name, parameter in self._model.named_parameters():
            yield name, parameter.detach()

    def named_own_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All of them: there is one rank."""
        return self.named_full_tensors()

    def buffers(self) -> dict[str, torch.Tensor]:
        """None: every tensor is a parameter."""
        return {}

    def save_model_config(self, directory: Path) -> None:
        """Write config.json."""
        self._model.config.save_pretrained(directory)


def fused(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors as a server of one GPU holds them, by its names."""
    merged: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        before, _, last = name.rpartition(".")
        prefix, _, module = before.rpartition(".")
        for held, parts in FUSED.items():
            if module == parts[0]:
                pieces = [tensors[f"{prefix}.{part}.{last}"] for part in parts]
                merged[f"{prefix}.{held}.{last}"] = torch.cat(pieces)
            if module in parts:
                break
        else:
            merged[name] = tensor
    return merged


def checksums(tensors: dict[str, torch.Tensor], device: str) -> dict[str, str]:
    """Checksums as SGLang computes them on ``device``."""
    return {name: checksum(tensor, device) for name, tensor in fused(tensors).items()}


def checksum(tensor: torch.Tensor, device: str) -> str:
    """On the CPU SHA-256; on a GPU a kernel of SGLang."""
    if device == "cpu":
        return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
    from sglang.srt.managers.mm_utils import tensor_hash

    return f"{tensor_hash(tensor.to(device)):016x}"


def held_by(address: str) -> dict[str, str]:
    """The checksums that a server of one GPU reports."""
    answer = post(address, "/weights_checker", {"action": "checksum"})
    (rank,) = answer["ranks"]
    return dict(rank["checksums"])


def post(address: str, path: str, body: dict[str, Any]) -> Any:
    """The server's answer."""
    request = urllib.request.Request(
        f"http://{address}{path}", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=ANSWER_S) as response:
        return json.load(response)


def differing(tensors: dict[str, torch.Tensor], address: str, device: str) -> list[str]:
    """Names of tensors that differ between trainer and server, or that only one of them has."""
    sent, held = checksums(tensors, device), held_by(address)
    return sorted(name for name in sent.keys() | held.keys() if sent.get(name) != held.get(name))


def main(address: str, model: Path, folder: Path, server: str, trainer: str, modes: list[str]) -> None:
    """Publish once per mode. ``server`` and ``trainer`` are the devices of the two."""
    dtype = torch.bfloat16 if server == "cuda" else torch.float32
    with joined(trainer) as ranks:
        policy = ChangingModel(model, device=ranks.device, dtype=dtype)
        engine = RemoteSGLangEngine(RolloutConfig(consumer_batch_size=1))
        engine.initialize([address], weights=WeightUpdate(0, path=model))
        for version, mode in enumerate(modes, start=1):
            kind: Literal["disk", "distributed"] = "disk" if mode == "disk" else "distributed"
            publisher = Publisher(policy, engine, mode=kind, run=folder / mode, dtype=dtype, ranks=ranks)
            policy.change()
            before = held_by(address)
            publisher.publish(version, wait=True)
            tensors = dict(policy.named_full_tensors())
            wrong = differing(tensors, address, server)
            unchanged = sorted(name for name, checksum in held_by(address).items() if before.get(name) == checksum)
            publisher.close()
            if wrong or unchanged:
                raise SystemExit(f"{mode}: the server's tensors are not the trainer's: {wrong or unchanged}")
            if (folder / mode / "weights").exists() != (mode == "disk"):
                raise SystemExit(f"{mode}: the update did not take this way")
            print(f"update: {mode}: {len(held_by(address))} tensors have the trainer's checksums", flush=True)
        engine.destroy()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5], sys.argv[6].split(","))
