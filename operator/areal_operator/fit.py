"""Whether an experiment fits, as far as the operator can see: a warning in the status that never stops a run."""

from __future__ import annotations

from areal_api import conditions
from areal_api.experiment import ExperimentSpec
from areal_api.sizing.gpus import gpu_of_labels
from areal_api.sizing.known_models import known_shape
from areal_api.sizing.report import Surroundings, UnknownModel, size_up
from areal_operator.diagnosis import Reason, truncated
from areal_operator.status import ConditionStatus, ConditionUpdate


def fit(spec: ExperimentSpec) -> ConditionUpdate:
    """The condition Fits. The operator reads neither volumes nor the hub: it knows published models by their name, and
    the GPU by the trainer's node selector.
    """
    path = spec.config.actor.path
    unread = UnknownModel(f"the operator cannot read actor.path {path!r}, grpo check can")
    where = Surroundings(gpu=gpu_of_labels(spec.trainer.node_selector), from_hub=True)
    report = size_up(spec, known_shape(path) or unread, where)
    if report.problems:
        return _fits("False", conditions.DOES_NOT_FIT, "; ".join((*report.problems, *report.warnings)))
    if report.not_checked:
        text = "; ".join((*(f"not checked: {reason}" for reason in report.not_checked), *report.warnings))
        return _fits("Unknown", conditions.NOT_CHECKED, text)
    return _fits("True", conditions.FITS, "; ".join(("GPU memory, disk and lengths fit", *report.warnings)))


def _fits(status: ConditionStatus, reason: str, message: str) -> ConditionUpdate:
    return ConditionUpdate(conditions.FITS, status, Reason(reason, truncated(message)))
