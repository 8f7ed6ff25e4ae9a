"""What an AReaL file says about the script that reads it: which algorithm trains, its workflow, and additional keys."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from areal_api.areal_config.keys import is_areal_key
from areal_api.areal_config.tree import Notes, Tree, get, pop, set_in
from areal_api.config import GRPOConfig
from areal_api.keys import section_of

_RLVR = ("areal.workflow.rlvr.RLVRWorkflow", "areal.workflow.rlvr:RLVRWorkflow")
_TRAINING = frozenset({"actor", "gconfig", "train_dataset"})
_SUPERVISED = {
    "sft": "supervised fine-tuning",
    "dpo": "direct preference optimization (DPO)",
    "rw": "fitting a reward model",
    "rm": "fitting a reward model",
}


def other_algorithm(config: Mapping[str, Any]) -> str | None:
    """Why a file cannot run here at all: it does not train by GRPO or a relative. None if it does.

    ``${…}`` in ``config`` need not be resolved.
    """
    if not _TRAINING.intersection(config):
        return "this file has no actor, gconfig and train_dataset, so it does not train a policy"
    if isinstance(get(config, "actor.type"), dict) or isinstance(config.get("exp_ctrl"), dict):
        return (
            "this is a file of AReaL before its rewrite of 2025 (realhf), which had other keys; start from a newer one"
        )
    kind = get(config, "train_dataset.type")
    kind = kind.rsplit("-", 1)[-1] if isinstance(kind, str) else None
    what = None
    if kind in _SUPERVISED:
        key, what = f"train_dataset.type is {get(config, 'train_dataset.type')!r}", _SUPERVISED[kind]
    elif get(config, "actor.is_critic") is True:
        key, what = "actor.is_critic is true", _SUPERVISED["rw"]
    elif config.get("critic") is not None:
        key, what = "critic is set", "PPO with a critic"
    elif config.get("teacher") is not None:
        key, what = "teacher is set", "distillation from a teacher"
    elif get(config, "actor.self_distillation") is not None:
        key, what = "actor.self_distillation is set", "distillation from itself"
    if what is None:
        return None
    return f"{key}: this file trains by {what}; only GRPO and its relatives are supported, which train one policy"


def is_skypilot_task(data: Mapping[str, Any]) -> bool:
    """Whether a file describes how SkyPilot runs a command, and no training."""
    return {"resources", "run"} <= data.keys() and not _TRAINING.intersection(data)


def convert_workflow(config: Tree, notes: Notes) -> None:
    """``workflow`` and ``eval_workflow`` as import paths of AReaL's scripts."""
    path, evaluation = config.get("workflow"), pop(config, "eval_workflow")
    if not isinstance(path, str):
        if evaluation is not None:
            notes.add("eval_workflow", "evaluation uses the workflow of training")
        return
    if evaluation is not None:
        same = "" if evaluation == path else f", {path}"
        notes.add("eval_workflow", f"evaluation uses the workflow of training{same}")
    del config["workflow"]
    if path in _RLVR:
        notes.add("workflow", "is the default here")
        return
    set_in(config, "workflow.path", import_path(path))
    needs = "; the trainer needs the package areal for it" if path.split(".")[0] == "areal" else ""
    notes.add("workflow", f"becomes workflow.path{needs}")


def import_path(path: str) -> str:
    """``package.module:name`` for AReaL's ``package.module.name``."""
    module, _, name = path.replace(":", ".").rpartition(".")
    return f"{module}:{name}"


def drop_script_keys(config: Tree, notes: Notes) -> None:
    """Drop top-level keys that belong to the script that the file was written for. A probable typo is kept."""
    known = GRPOConfig.keys()
    for key in list(config):
        if key in known or is_areal_key(key) or _is_misspelled(key, config[key]):
            continue
        del config[key]
        notes.add(key, "a key of the script, not of AReaL: pass it to your workflow in workflow.kwargs")


def _is_misspelled(key: str, value: Any) -> bool:
    """Whether ``key`` resembles a key of the configuration, and its value has the same form."""
    known = GRPOConfig.keys()
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    if not near:
        return False
    section = section_of(GRPOConfig.model_fields[known[near[0]]].annotation)
    if section is None or not isinstance(value, dict):
        return section is None and not isinstance(value, dict)
    return not section.keys().keys().isdisjoint(value)
