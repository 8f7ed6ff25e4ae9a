"""Experiments whose trainer has several ranks, and how they divide the model: a part of ``experiment_cases``."""

from __future__ import annotations

from hack.testbed.experiment_case import Case

_ACTOR = "spec.config.actor"

LAYOUT_CASES = [
    Case(
        "a batch that the ranks cannot share",
        {"spec.trainer.processesPerNode": 3},
        "train_dataset.batch_size is 8, not a multiple of the 3 ranks",
        "train_dataset.batch_size",
    ),
    Case(
        "copies of the model that the ranks cannot share",
        {f"{_ACTOR}.fsdp": {"replicas": 3}, "spec.trainer.nodes": 2},
        "actor.fsdp.replicas is 3, which does not divide the 2 ranks",
        "actor.fsdp.replicas",
    ),
    Case(
        "a layout that the ranks cannot be divided by",
        {f"{_ACTOR}.parallel": {"tensor": 2, "context": 2}, "spec.trainer.processesPerNode": 2},
        "actor.parallel is tensor 2 × context 2, which does not divide the 2 ranks",
        "actor.parallel.tensor",
    ),
    Case(
        "ranks that share their prompts",
        {f"{_ACTOR}.parallel": {"tensor": 2, "context": 3}, "spec.trainer.processesPerNode": 24},
    ),
    Case(
        "a batch that the data-parallel ranks cannot share",
        {f"{_ACTOR}.parallel": {"tensor": 2}, "spec.trainer.processesPerNode": 6},
        "train_dataset.batch_size is 8, not a multiple of the 3 ranks of the trainer (trainer.nodes × "
        "trainer.processesPerNode ÷ actor.parallel 2)",
        "train_dataset.batch_size",
    ),
    Case(
        "copies of a model whose layers are divided",
        {
            f"{_ACTOR}.fsdp": {"replicas": 2},
            f"{_ACTOR}.parallel": {"tensor": 2},
            "spec.trainer.nodes": 2,
        },
        "actor.fsdp.replicas is 2, which does not divide the 2 ranks of the trainer (trainer.nodes × "
        "trainer.processesPerNode) ÷ actor.parallel.tensor 2",
        "actor.fsdp.replicas",
    ),
    Case(
        "experts that the ranks cannot divide",
        {f"{_ACTOR}.parallel": {"expert": 3}, "spec.trainer.processesPerNode": 4},
        "actor.parallel.expert is 3, which does not divide the 4 ranks of the trainer (trainer.nodes × "
        "trainer.processesPerNode); choose a divisor",
        "actor.parallel.expert",
    ),
    Case(
        "experts that the ranks of a copy cannot divide",
        {
            f"{_ACTOR}.parallel": {"expert": 4},
            f"{_ACTOR}.fsdp": {"replicas": 2},
            "spec.trainer.processesPerNode": 4,
        },
        "actor.parallel.expert is 4, which does not divide the 4 ranks of the trainer (trainer.nodes × "
        "trainer.processesPerNode ÷ actor.fsdp.replicas 2)",
        "actor.parallel.expert",
    ),
    Case(
        "experts divided over ranks that share their prompts",
        {f"{_ACTOR}.parallel": {"expert": 4, "context": 2}, "spec.trainer.processesPerNode": 8},
    ),
    Case(
        "experts and layers that ranks divide",
        {f"{_ACTOR}.parallel": {"expert": 2, "tensor": 2}, "spec.trainer.processesPerNode": 4},
        "parallel.expert is 2, which does not combine with parallel.tensor 2",
        "actor.parallel.expert",
    ),
    Case(
        "experts that ranks divide, with adapters",
        {f"{_ACTOR}.parallel": {"expert": 2}, f"{_ACTOR}.lora": {}, "spec.trainer.processesPerNode": 4},
        "parallel.expert is 2, which does not combine with lora",
        "actor.parallel.expert",
    ),
    Case("a copy of the model per node", {f"{_ACTOR}.fsdp": {"replicas": 2}, "spec.trainer.nodes": 2}),
]
