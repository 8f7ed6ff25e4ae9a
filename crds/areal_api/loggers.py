"""Where the statistics of a run are logged besides stats.jsonl."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from areal_api.section import Section


class WandBConfig(Section):
    """Weights & Biases."""

    mode: Literal["online", "offline", "disabled"] = Field("disabled", description="online needs WANDB_API_KEY.")
    project: str | None = Field(None, description="Project; null is experiment_name.")
    entity: str | None = Field(None, description="Entity.")
    name: str | None = Field(None, description="Name of the run; null is trial_name.")
    group: str | None = Field(None, description="Group of runs.")
    tags: list[str] = Field(default_factory=list, description="Tags.")
    notes: str | None = Field(None, description="Notes.")


class SwanlabConfig(Section):
    """SwanLab."""

    mode: Literal["cloud", "local", "offline", "disabled"] = Field(
        "disabled", description="cloud needs SWANLAB_API_KEY."
    )
    project: str | None = Field(None, description="Project; null is experiment_name.")
    name: str | None = Field(None, description="Name of the run; null is trial_name.")
    logdir: str | None = Field(None, description="Directory of local logs; null is swanlab/ in the run directory.")


class TensorBoardConfig(Section):
    """TensorBoard."""

    path: str | None = Field(
        None, description="Directory of the event files, relative to the run directory; null writes none."
    )


class StatsLoggerConfig(Section):
    """Where statistics are written in addition to stats.jsonl."""

    wandb: WandBConfig = Field(default_factory=WandBConfig, description="Weights & Biases.")
    swanlab: SwanlabConfig = Field(default_factory=SwanlabConfig, description="SwanLab.")
    tensorboard: TensorBoardConfig = Field(default_factory=TensorBoardConfig, description="TensorBoard.")
