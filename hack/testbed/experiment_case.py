"""One experiment that is accepted or refused, and why."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from areal_api.areal_config.tree import set_in


def nested(levels: int) -> Any:
    """1 below this many mappings."""
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


_BASE: dict[str, Any] = {
    "apiVersion": "areal.dev/v1alpha1",
    "kind": "GRPOExperiment",
    "metadata": {"name": "case"},
    "spec": {
        "config": {
            "actor": {"path": "model", "ppo_n_minibatches": 1},
            "train_dataset": {"path": "data.jsonl", "batch_size": 8},
        }
    },
}


@dataclass(frozen=True)
class Case:
    """The base experiment with ``changes`` (by dotted key). ``problem`` is in the model's message; None: accepted.

    ``rule`` is in the message of the rule that refuses it at the API server; empty where the schema itself does.
    """

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None
    rule: str = ""

    def experiment(self) -> dict[str, Any]:
        """The object."""
        data = copy.deepcopy(_BASE)
        for key, value in self.changes.items():
            set_in(data, key, copy.deepcopy(value))
        return data
