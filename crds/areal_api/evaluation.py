"""Evaluation: when, on which held-out problems, and what is kept of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from areal_api.data_config import RewardConfig, ValidDatasetConfig
from areal_api.frequency import Frequency
from areal_api.generation import GenerationHyperparameters
from areal_api.section import Section

MAX_SETS = 16
SET_NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9_-]{0,38}[A-Za-z0-9])?$"
VALID = "valid"  # the name of valid_dataset in files


class EvaluationSet(Section):
    """A held-out data set beside valid_dataset, with its own reward and sampling."""

    name: str = Field(pattern=SET_NAME_PATTERN, description="Its name in statistics and files.")
    dataset: ValidDatasetConfig = Field(description="The held-out problems.")
    reward: RewardConfig | None = Field(None, description="Reward function; null is that of training.")
    gconfig: GenerationHyperparameters | None = Field(None, description="Sampling; null is that of valid_dataset.")

    def with_path(self, path: str) -> Self:
        """A copy whose data set is at ``path``."""
        return self.model_copy(update={"dataset": self.dataset.model_copy(update={"path": path})})


class EvaluatorConfig(Frequency):
    """Evaluation on held-out problems by the same servers; always done before the first step and after the last."""

    sets: list[EvaluationSet] = Field(
        default_factory=list, max_length=MAX_SETS, description="More held-out data sets, evaluated with valid_dataset."
    )
    solved_reward: float = Field(
        1.0, description="Reward from which a sample counts as solved in pass@k and maj@k, which need n_samples > 1."
    )
    save_best: bool = Field(
        False,
        description="Save a Hugging Face checkpoint to checkpoints/best after each evaluation with the best reward on "
        "valid_dataset so far.",
    )
    dump_to_file: bool = Field(True, description="Write the samples of each evaluation to evaluations/.")
    dump_max_bytes: int = Field(
        2**28,
        ge=2**20,
        description="Size of evaluations/; beyond it the files of the oldest evaluations are deleted.",
        json_schema_extra={"unit": "bytes"},
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        counts = Counter(one.name for one in self.sets)
        counts[VALID] += 1
        repeated = [name for name, count in counts.items() if count > 1]
        if repeated:
            reason = "is the name of valid_dataset" if repeated[0] == VALID else "occurs twice"
            raise ValueError(f"sets: name {repeated[0]!r} {reason}; names must be unique, choose another")
        for index, one in enumerate(self.sets):
            if not one.dataset.path:
                raise ValueError(
                    f"sets[{index}].dataset.path is empty; set it to a data set (hub name, file or directory)"
                )
        return self


@dataclass(frozen=True)
class HeldOut:
    """A held-out data set with everything resolved. ``key`` is that of its data set in the configuration."""

    name: str
    key: str
    dataset: ValidDatasetConfig
    reward: RewardConfig
    gconfig: GenerationHyperparameters
    has_own_settings: bool = False  # whether the set configures a reward or sampling
