"""Experiments of the API server → ``ExperimentState``. Nothing in one object may cause any other error than these."""

from __future__ import annotations

import logging
from typing import Any

from pydantic import ValidationError

from areal_api.errors import ConfigError, describe
from areal_api.experiment import GRPOExperiment
from areal_api.keys import without_unknown
from areal_api.load import parse_experiment
from areal_api.status import ExperimentStatus
from areal_operator.depth import MAX_DEPTH, is_deeper_than
from areal_operator.observed import ExperimentState, Object

logger = logging.getLogger(__name__)

MAX_NAMED = 10  # unknown fields


class UnknownPhaseError(Exception):
    """Another version of the operator wrote a phase or an attempt that this version cannot read."""


def state_of(body: Object) -> ExperimentState:
    """The experiment in an object of the API server; raises ``ConfigError`` for every problem of its spec."""
    metadata = body["metadata"]
    status = status_of(body)
    experiment, unknown = parsed_spec(body)
    return ExperimentState(experiment, metadata["namespace"], metadata["uid"], metadata["generation"], status, unknown)


def parsed_spec(body: Object) -> tuple[GRPOExperiment, tuple[str, ...]]:
    """The experiment without its status, and the fields that this version does not know."""
    name = str(body["metadata"]["name"])
    plain = {key: value for key, value in body.items() if key != "status"}
    if is_deeper_than(plain.get("spec"), MAX_DEPTH):
        raise ConfigError(f"{name}: spec is nested more than {MAX_DEPTH} levels deep; no field needs that, flatten it")
    plain["metadata"] = {key: value for key, value in plain["metadata"].items() if key != "managedFields"}
    known, unknown = without_unknown(GRPOExperiment, plain)
    try:
        return parse_experiment(known, source=name), tuple(unknown[:MAX_NAMED])
    except ConfigError:
        raise
    except Exception as error:
        logger.warning("%s: the spec cannot be parsed", name, exc_info=True)
        raise ConfigError(f"{name}: the spec cannot be parsed: {describe(error)[:500]}") from error


def status_of(body: Object) -> ExperimentStatus:
    """The status in an object. Fields that cannot be read are left out, because another version wrote them.

    Raises ``UnknownPhaseError`` if that concerns phase or attempt: without them a finished run would start again.
    """
    status: dict[str, Any] = dict(body.get("status") or {})
    for _ in range(len(status) + 1):
        try:
            return ExperimentStatus.model_validate(status)
        except ValidationError as error:
            fields = {str(details["loc"][0]) for details in error.errors(include_url=False) if details["loc"]}
            name = body["metadata"]["name"]
            if not fields or fields & {"phase", "attempt", "restarts", "outcome"}:
                raise UnknownPhaseError(f"{name}: the status cannot be read: {describe(error)[:300]}") from error
            logger.warning("%s: ignoring unreadable fields of the status: %s", name, ", ".join(sorted(fields)))
            status = {key: value for key, value in status.items() if key not in fields}
    raise AssertionError("each round removes a field")
