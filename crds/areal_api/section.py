"""Base class of all configuration sections: frozen and typed; an unknown key is refused with the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from areal_api.bounds import problem_of_value

MAX_SHOWN_KEYS = 10  # unknown keys in one message: suggestions cost time that is quadratic in the keys' lengths
MAX_SHOWN_KEY = 100  # characters
UNKNOWN_KEYS = "unknown_keys"  # type of the pydantic error; its context is {"keys": [...], "known": [...]}


def nearest(key: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?``, or the list of known keys if none is similar."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(names)}"


class Section(BaseModel):
    """One section of the configuration. Immutable; an unknown key is an error that suggests the nearest known one."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )

    @classmethod
    @cache
    def keys(cls) -> dict[str, str]:
        """Maps key names in a file to attribute names."""
        return {field.alias or name: name for name, field in cls.model_fields.items()}

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if not isinstance(values, dict) or cls.model_config.get("extra") != "forbid":
            return values
        known = list(cls.keys())
        unknown = [str(key)[:MAX_SHOWN_KEY] for key in values if key not in known][:MAX_SHOWN_KEYS]
        if unknown:
            text = "; ".join(f"unknown key {key!r} in {cls.__name__}, {nearest(key, known)}" for key in unknown)
            raise PydanticCustomError(UNKNOWN_KEYS, "{text}", {"text": text, "keys": unknown, "known": known})
        for key, value in values.items():
            if (problem := problem_of_value(value)) is not None:
                raise ValueError(f"{key} {problem}")
        return values


class CamelSection(Section):
    """A section of the custom resource, with camelCase keys as usual in Kubernetes."""

    model_config = ConfigDict(alias_generator=to_camel)
