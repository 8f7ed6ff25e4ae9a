"""Converts AReaL's ``actor.rejection_sampling`` and its predecessors to bounds of the decoupled loss's weights."""

from __future__ import annotations

import math
from typing import Any

from areal_api.areal_config.tree import Notes, Tree, get, pop, set_in
from areal_api.errors import ConfigError

_SECTION = "actor.rejection_sampling"
_CAP, _MIN, _KPOP = "actor.behav_imp_weight_cap", "actor.correction.min_weight", "actor.correction.max_binary_kl"
_CHOICES = {
    "level": ("token", "sequence"),
    "action": ("mask", "clamp"),
    "metric": ("ratio", "kl_k1", "kl_k2", "kl_k3", "binary_kl"),
    "agg": ("mean", "sum", "max"),
}
_MODES = {  # of actor.behave_imp_weight_mode
    "token_mask": {},
    "token_truncate": {"action": "clamp"},
    "sequence_mask": {"level": "sequence"},
    "sequence_truncate": {"level": "sequence", "action": "clamp"},
}


def convert_rejection(config: Tree, notes: Notes) -> bool:
    """Translate the correction of ``config`` in place; return whether it has one."""
    rejection, mode = pop(config, _SECTION), pop(config, "actor.behave_imp_weight_mode")
    _convert_kpop(config, notes)
    icepop = _pop_icepop(config)
    if icepop is not None and rejection is None and mode is None:
        rejection, icepop = {"lower": icepop[0], "upper": icepop[1]}, None
    if rejection is None and mode is None:
        return False
    source = _SECTION if rejection is not None else "actor.behave_imp_weight_mode"
    if rejection is None:
        if mode not in _MODES:
            raise ConfigError(f"{source} is {mode!r}; known modes: {', '.join(_MODES)}, disabled")
        rejection = {**_MODES[mode], "upper": get(config, _CAP, 5.0)}
    keys = keys_of(rejection)
    if not get(config, "actor.use_decoupled_loss"):
        notes.add(source, "has no effect without use_decoupled_loss, also in AReaL; dropped")
        return True
    if icepop is not None:
        keys |= {_MIN: max(keys.get(_MIN) or 0, icepop[0]), _CAP: min(keys[_CAP] or math.inf, icepop[1])}
    for key, value in keys.items():
        set_in(config, key, value)
    notes.add(source, f"becomes {', '.join(f'{key} {_text(value)}' for key, value in keys.items())}")
    return True


def _convert_kpop(config: Tree, notes: Notes) -> None:
    """The keys of KPop before ``rejection_sampling`` had ``metric: binary_kl``."""
    enabled, bound = pop(config, "actor.enable_kpop"), pop(config, "actor.kpop_phi")
    if enabled:
        set_in(config, _KPOP, 2.0 if bound is None else bound)
        notes.add("actor.enable_kpop", f"becomes {_KPOP}")


def _pop_icepop(config: Tree) -> tuple[float, float] | None:
    """The bounds of IcePop's keys before ``rejection_sampling`` had a lower bound."""
    enabled = pop(config, "actor.enable_icepop")
    low, high = pop(config, "actor.icepop_alpha"), pop(config, "actor.icepop_beta")
    return (0.5 if low is None else low, 5.0 if high is None else high) if enabled else None


def _text(value: Any) -> str:
    return "null" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value).lower()


def keys_of(rejection: Any) -> dict[str, Any]:
    """Our keys for a section ``rejection_sampling``. Raises ``ConfigError`` for what they cannot express.

    A bound of AReaL's KL estimators is a bound of the weight w: with d = ln w, k1 is d, k2 is d²/2, and k3 is
    e^(−d) − 1 + d. ``ratio`` at sequence level is the geometric mean of w, which also becomes the weight.
    """
    section = _checked(rejection)
    level, action, metric = section["level"], section["action"], section["metric"]
    if metric != "ratio" and (level, action) != ("token", "mask"):
        raise ConfigError(
            f"{_SECTION}.metric is {metric!r} with level {level} and action {action}, which is not supported; "
            "use metric ratio, or level token with action mask"
        )
    if level == "sequence" and section["agg"] != "mean":
        raise ConfigError(f"{_SECTION}.agg is {section['agg']!r}, which is not supported; set it to mean")
    keys: dict[str, Any] = {}
    if level == "sequence":
        keys["actor.correction.weight_level"] = "sequence"
    if action == "clamp":
        keys["actor.correction.truncate"] = True
    if metric == "binary_kl":
        return keys | {_CAP: None, _KPOP: section["upper"]}
    lower, upper = _ratio_bounds(metric, section["lower"], section["upper"])
    if upper <= 1:
        raise ConfigError(f"{_SECTION}.upper is {section['upper']} of {metric}, so even current tokens are bounded")
    keys[_CAP] = upper
    if lower is not None:
        if not 0 < lower < 1:
            raise ConfigError(f"{_SECTION}.lower is {section['lower']} of {metric}, so even current tokens are bounded")
        keys[_MIN] = lower
    return keys


def _checked(rejection: Any) -> dict[str, Any]:
    if not isinstance(rejection, dict):
        raise ConfigError(f"{_SECTION} is {rejection!r}, not a section; write {{metric: ratio, upper: 5.0}}")
    section: dict[str, Any] = {"level": "token", "action": "mask", "metric": "ratio", "agg": "mean"}
    section |= {"upper": 5.0, "lower": None} | rejection
    for key, value in section.items():
        if key in _CHOICES and value not in _CHOICES[key]:
            raise ConfigError(f"{_SECTION}.{key} is {value!r}; choose one of {', '.join(_CHOICES[key])}")
        if key not in (*_CHOICES, "upper", "lower"):
            raise ConfigError(f"{_SECTION}.{key}: unknown key; known keys: {', '.join(_CHOICES)}, upper, lower")
    for key in ("upper", "lower"):
        value = section[key]
        if value is not None or key == "upper":
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value):
                raise ConfigError(f"{_SECTION}.{key} is {value!r}; write a number")
            section[key] = float(value)
    if section["lower"] is not None and section["metric"] in ("kl_k2", "kl_k3", "binary_kl"):
        raise ConfigError(
            f"{_SECTION}.lower is {section['lower']}: {section['metric']} has no lower bound here; leave it out"
        )
    if section["upper"] <= 0:
        raise ConfigError(f"{_SECTION}.upper is {section['upper']}; write a number above 0")
    return section


def _ratio_bounds(metric: str, lower: float | None, upper: float) -> tuple[float | None, float]:
    """The bounds of w = e^d for bounds of a metric of d."""
    if metric == "ratio":
        return lower, upper
    if metric == "kl_k1":
        return (None if lower is None else math.exp(max(lower, -700.0))), math.exp(min(upper, 700.0))
    if metric == "kl_k2":
        reach = min(math.sqrt(2 * upper), 700.0)
        return math.exp(-reach), math.exp(reach)
    # k3 rises with |d| and is below |d| + 1 for d > 0, and below e^|d| for d < 0.
    return math.exp(_root(upper, -math.log(2 + upper) - 1)), math.exp(min(_root(upper, upper + 1), 700.0))


def _root(value: float, far: float) -> float:
    """The d between 0 and ``far`` where e^(−d) − 1 + d = ``value``, by bisection."""
    near = 0.0
    for _ in range(200):
        middle = (near + far) / 2
        if math.expm1(-middle) + middle < value:
            near = middle
        else:
            far = middle
    return near
