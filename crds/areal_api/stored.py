"""Reads objects from the API server, whose resource definition may be older or newer than this program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from areal_api.experiment import GRPOExperiment
from areal_api.keys import without_unknown
from areal_api.load import parse_experiment
from areal_api.status import ExperimentStatus

_ATTEMPTS = 4  # removing a value may expose a problem of its section


def read_experiment(body: Mapping[str, Any], *, source: str) -> tuple[GRPOExperiment, list[str]]:
    """An experiment of the API server, and the dotted keys that this version does not know and ignores.

    A newer definition writes the defaults of its new fields into every object, so an unknown key says nothing about
    the user. Known keys are validated as strictly as in a file: raises ``ConfigError``.
    """
    spec = body.get("spec")
    if not isinstance(spec, Mapping):
        return parse_experiment(body, source=source), []
    known, unknown = without_unknown(GRPOExperiment, {"spec": spec})
    return parse_experiment({**body, **known, "status": None}, source=source), unknown


def read_status(body: Mapping[str, Any]) -> ExperimentStatus:
    """The status of an object. Values that this version cannot read are left out, never an error."""
    data = body.get("status")
    if not isinstance(data, dict):
        return ExperimentStatus()
    for _ in range(_ATTEMPTS):
        try:
            return ExperimentStatus.model_validate(data)
        except ValidationError as error:
            data = _without(data, [details["loc"] for details in error.errors(include_url=False, include_input=False)])
    return ExperimentStatus()


def _without(data: dict[str, Any], places: list[tuple[int | str, ...]]) -> dict[str, Any]:
    """``data`` without the values at ``places``; an item of a list goes as a whole."""
    kept = dict(data)
    for place in places:
        key = str(place[0]) if place else ""
        value = kept.get(key)
        if isinstance(value, list):
            bad = {at[1] for at in places if len(at) > 1 and at[0] == key}
            kept[key] = [item for index, item in enumerate(data[key]) if index not in bad]
        elif isinstance(value, dict) and len(place) > 1:
            kept[key] = {name: item for name, item in value.items() if name != place[1]}
        else:
            kept.pop(key, None)
    return kept
