"""Kubernetes Events about experiments."""

from __future__ import annotations

import uuid
from datetime import datetime

from areal_api import resource_names
from areal_api.experiment import API_VERSION, KIND
from areal_operator.clock import show
from areal_operator.manifests.base import Manifest
from areal_operator.observed import ExperimentState
from areal_operator.transitions import Transition

MAX_MESSAGE_LENGTH = 1000  # the API server takes 1024


def event(state: ExperimentState, transition: Transition, now: datetime) -> Manifest:
    """The Event of a transition."""
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{state.name}.{uuid.uuid4().hex[:16]}", "namespace": state.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": state.name,
            "namespace": state.namespace,
            "uid": state.uid,
        },
        "type": transition.type,
        "reason": transition.reason,
        "message": transition.message[:MAX_MESSAGE_LENGTH],
        "source": {"component": resource_names.OPERATOR},
        "firstTimestamp": show(now),
        "lastTimestamp": show(now),
        "count": 1,
    }
