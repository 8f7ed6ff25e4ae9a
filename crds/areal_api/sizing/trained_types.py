"""Which types of models the trainer trains, and how. ``python hack/families.py`` finds it out and writes the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("trained_types.json")
# Keys of a config.json with which a model transforms its logits after the output embedding.
LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")
NOT_COMPUTED = "which the trainer does not compute"


@cache
def trained_types() -> dict[str, Any]:
    """The content of ``FILE``: types that are ``packed``, those of them that are ``tensor_parallel``, and by
    reason those that are ``padded`` or ``refused``."""
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def reason_for(kind: str, how: str) -> str | None:
    """Why models of a type are ``padded`` or ``refused``; None if they are not."""
    return next((reason for reason, kinds in trained_types()[how].items() if kind in kinds), None)


def is_causal_lm(kind: str) -> bool:
    """Whether transformers, in the version of the trainer, has a causal language model of the type."""
    found = trained_types()
    listed = [*found["padded"].values(), *found["refused"].values()]
    return any(kind in kinds for kinds in (found["packed"], found["unbuilt"], *listed))


def training_problem(kind: str, *, attn_impl: str | None, logit_changes: tuple[str, ...] | None = None) -> str | None:
    """Why the trainer will refuse models of the type ``kind`` (of transformers), with the fix; None if it will not.

    ``logit_changes``: the keys of ``LOGIT_CHANGES`` that change the logits of this model; None if they are unknown.
    """
    refused = reason_for(kind, "refused")
    if logit_changes is not None and (refused is None or refused.endswith(NOT_COMPUTED)):  # the model's own keys decide
        refused = f"{', '.join(logit_changes)}, {NOT_COMPUTED}" if logit_changes else None
    if refused is not None:
        return (
            f"actor.path: the trainer does not train this model of type {kind}: {refused}; choose another model "
            "(docs/models.md lists the types)"
        )
    padded = reason_for(kind, "padded")
    if padded is not None and attn_impl != "eager":
        return (
            f"actor.path: models of type {kind} are trained with padding only ({padded}); "
            "set config.actor.attn_impl=eager"
        )
    return None


def logit_changes(kind: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys with which this model changes its logits. A key that is missing has the default of its type."""
    default = (reason_for(kind, "refused") or "").partition(",")[0]
    return tuple(key for key in LOGIT_CHANGES if config.get(key, 0 if key == default else None) not in (None, 1))
