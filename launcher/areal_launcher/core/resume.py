"""Checks that a run which resumes from a recovery checkpoint is still the same run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from areal_api import names
from areal_api.config import GRPOConfig
from areal_api.load import read_yaml

# What decides which problems are trained in which order, and from which model. The trainer checks the rows themselves.
IDENTITY = (
    "seed",
    "tokenizer_path",
    "actor.path",
    "ref.path",
    "train_dataset.path",
    "train_dataset.name",
    "train_dataset.split",
    "train_dataset.batch_size",
    "train_dataset.shuffle",
    "train_dataset.drop_last",
    "train_dataset.max_length",
    "train_dataset.limit",
    "train_dataset.question_column",
    "train_dataset.answer_column",
    "train_dataset.instruction",
    "train_mix",
)
ABSENT = object()  # for keys that an older version did not have


def check_resume(config: GRPOConfig, run: Path) -> None:
    """Raise ``ValueError`` if ``run`` has recovery checkpoints of another configuration, naming every difference."""
    if config.recover.mode == "disabled" or not any(names.recover_dir(run).glob("step*")):
        return
    path = names.config_file(run)
    if not os.path.isfile(path):
        return  # the checkpoints were copied here; the trainer checks what they record
    previous, current = read_yaml(path), config.model_dump(mode="json")
    differences = [
        f"{key} was {old!r} and is {new!r}"
        for key in IDENTITY
        if (old := lookup(previous, key)) is not ABSENT and not same(key, old, new := lookup(current, key))
    ]
    if differences:
        raise ValueError(
            f"{run} has recovery checkpoints of another configuration: {'; '.join(differences)}. "
            f"Restore {'it' if len(differences) == 1 else 'them'}, or start a new run with another trial_name"
        )


def lookup(config: Any, key: str) -> Any:
    """The value of a dotted key, ``ABSENT`` if a section lacks it; null for keys of a section that is null."""
    for name in key.split("."):
        if config is None:
            return None
        if not isinstance(config, dict) or name not in config:
            return ABSENT
        config = config[name]
    return config


def same(key: str, old: Any, new: Any) -> bool:
    """Whether two values are equal; local paths are equal if they name the same file."""
    if key.endswith("path") and isinstance(old, str) and isinstance(new, str) and old != new:
        return os.path.exists(old) and os.path.realpath(old) == os.path.realpath(new)
    return bool(old == new)
