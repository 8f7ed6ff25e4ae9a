"""Where the statistics of a run are logged besides stats.jsonl."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

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


class MLflowConfig(Section):
    """MLflow."""

    tracking_uri: str | None = Field(
        None,
        min_length=1,
        description="Tracking server (https://…) or a local store (sqlite:///FILE); null logs nothing. Credentials are "
        "taken from MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
    )
    experiment: str | None = Field(None, description="Experiment of MLflow; null is experiment_name.")
    name: str | None = Field(None, description="Name of the run; null is trial_name.")
    tags: dict[str, str] = Field(default_factory=dict, description="Tags.")


class TrackioConfig(Section):
    """Trackio."""

    mode: Literal["local", "online", "disabled"] = Field(
        "disabled", description="local writes below TRACKIO_DIR or the cache of Hugging Face; online needs space_id."
    )
    project: str | None = Field(None, description="Project; null is experiment_name.")
    name: str | None = Field(None, description="Name of the run; null is trial_name.")
    space_id: str | None = Field(
        None, description="Space on Hugging Face that shows the runs, owner/name. Needs HF_TOKEN."
    )

    @model_validator(mode="after")
    def _online_has_a_space(self) -> Self:
        if (self.mode == "online") != (self.space_id is not None):
            raise ValueError(
                f"mode is {self.mode} and space_id is {self.space_id!r}; online needs a space_id, other modes none"
            )
        return self


class StatsLoggerConfig(Section):
    """Where statistics are written in addition to stats.jsonl."""

    wandb: WandBConfig = Field(default_factory=WandBConfig, description="Weights & Biases.")
    swanlab: SwanlabConfig = Field(default_factory=SwanlabConfig, description="SwanLab.")
    tensorboard: TensorBoardConfig = Field(default_factory=TensorBoardConfig, description="TensorBoard.")
    mlflow: MLflowConfig = Field(default_factory=MLflowConfig, description="MLflow.")
    trackio: TrackioConfig = Field(default_factory=TrackioConfig, description="Trackio.")
