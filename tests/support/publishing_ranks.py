"""Ranks that publish a policy: ``python publishing_ranks.py MODEL OUT CASE…``, where a case is like ``d2t2/2:lora``.

A layout, how many copies of the model it keeps, and a variant. Imports once and forks the ranks. The weights are those
of MODEL after a change that does not depend on the layout.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from areal_trainer.model.policy import Policy
from areal_trainer.ranks import Ranks, joined
from areal_trainer.weights import disk
from areal_trainer.weights.disk import publish_to_disk
from areal_trainer.weights.finite import NonFiniteWeightsError
from support.parallel_ranks import fork_ranks, layout
from support.tiny_policy import actor_config

VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "bfloat16": {"dtype": "bfloat16"},
    "lora": {"lora": {"rank": 4}},
}
SHARD_BYTES = 24 << 10  # of all ranks: every one writes several files
FAILURES = ("dies", "full-disk", "not-finite", "lost", "foreign")
DIES = 21


def changed_policy(model: Path, parallel: Any, **changes: Any) -> Policy:
    """The model, with every weight changed in the same way in all layouts."""
    values = {"parallel": parallel.model_dump()} | changes
    policy = Policy(actor_config(model, **values), device="cpu", total_steps=1, seed=1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.001).add_(0.003)
    return policy


def publish_case(model: Path, out: Path, text: str) -> None:
    """Publish version 1, and write what the collective iterators yield to ``full.pt``."""
    text, _, variant = text.partition(":")
    text, _, copies = text.partition("/")
    changes = VARIANTS[variant] | ({"fsdp": {"replicas": int(copies)}} if copies else {})
    with joined("cpu", layout(text)[1]) as ranks:
        policy = changed_policy(model, layout(text)[1], **changes)
        publish_to_disk(policy, run=out, version=1, dtype=policy.model.dtype, ranks=ranks)
        full = {name: tensor.clone() for name, tensor in policy.named_full_tensors()}
        assert bool(full) == ranks.is_first
        if ranks.is_first:
            torch.save(full, out / "full.pt")


class Failing:
    """A policy with which rank 1 fails at its third tensor, or after its last one."""

    def __init__(self, policy: Policy, case: str, partial: Path) -> None:
        self.policy, self.case, self.partial = policy, case, partial
        self.save_model_config = policy.save_model_config
        self.buffers = policy.buffers
        self.named_full_tensors = policy.named_full_tensors

    def named_own_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        fails = Ranks.current().rank == 1
        for number, (name, tensor) in enumerate(self.policy.named_own_tensors()):
            here = fails and number == 2
            if here and self.case == "dies":
                os._exit(DIES)
            if here and self.case == "full-disk":
                disk.save_file = no_space
            yield name, tensor * math.nan if here and self.case == "not-finite" else tensor
        if fails and self.case == "lost":
            next(self.partial.glob("model-00002-*")).unlink()
        if fails and self.case == "foreign":
            (self.partial / "model-00009-00001.safetensors").touch()


def no_space(tensors: object, file: Path, *, dtype: torch.dtype) -> str:
    raise OSError(28, "No space left on device", str(file))


def fail_case(model: Path, out: Path, case: str) -> None:
    """Publish version 1, and fail on version 2. Each rank writes what it has seen to ``<rank>.txt``."""
    with joined("cpu") as ranks:
        policy = changed_policy(model, layout("d1")[1])
        publish_to_disk(policy, run=out, version=1, dtype=torch.float32, ranks=ranks)
        ranks.barrier()
        failing, said = Failing(policy, case, out / "weights/.v2.partial"), "nothing"
        try:
            publish_to_disk(failing, run=out, version=2, dtype=torch.float32, ranks=ranks)
        except (OSError, NonFiniteWeightsError) as error:
            said = f"{type(error).__name__}: {error}"
        (out / f"{ranks.rank}.txt").write_text(said)
        ranks.barrier()


def main(model: Path, out: Path, cases: list[str]) -> None:
    disk.SHARD_BYTES = SHARD_BYTES
    for text in cases:
        folder = out / text.replace("/", "r")
        folder.mkdir()
        ranks, work = (2, fail_case) if text in FAILURES else (layout(text)[0], publish_case)
        problems = fork_ranks(ranks, lambda f=folder, t=text, w=work: w(model, f, t))
        (folder / "problems.txt").write_text("\n".join(problems))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
