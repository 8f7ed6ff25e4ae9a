"""Services that receive the statistics: Weights & Biases, SwanLab, TensorBoard, MLflow, Trackio, and the operator."""

from __future__ import annotations

import netrc
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

from areal_api.loggers import MLflowConfig, StatsLoggerConfig, SwanlabConfig, TrackioConfig, WandBConfig
from areal_trainer.stats.operator_sink import progress_sink

Stats = Mapping[str, float]


class Sink(Protocol):
    """Receives the statistics of each step."""

    def log(self, step: int, stats: Stats) -> None: ...

    def close(self) -> None: ...


def open_sinks(
    run: Path, config: StatsLoggerConfig, *, experiment_name: str, trial_name: str, settings: Mapping[str, Any]
) -> list[Sink]:
    """Connect the configured services. ``settings`` is the run's configuration, shown next to its curves.

    Raises ``ValueError`` if a service needs an API key that is not set.
    """
    if config.wandb.mode == "online":
        _require_wandb_key()
    if config.swanlab.mode == "cloud":
        _require_swanlab_key()
    sinks: list[Sink] = []
    if config.wandb.mode != "disabled":
        sinks.append(WandB(run, config.wandb, experiment_name, trial_name, settings))
    if config.swanlab.mode != "disabled":
        sinks.append(SwanLab(run, config.swanlab, experiment_name, trial_name, settings))
    if config.tensorboard.path is not None:
        sinks.append(TensorBoard(run / config.tensorboard.path))
    if config.mlflow.tracking_uri is not None:
        sinks.append(MLflow(run, config.mlflow, experiment_name, trial_name, settings))
    if config.trackio.mode != "disabled":
        sinks.append(Trackio(config.trackio, experiment_name, trial_name, settings))
    sinks.extend(progress_sink(os.environ))
    return sinks


class WandB:
    """A Weights & Biases run; a resumed run continues the same one."""

    def __init__(
        self, run: Path, config: WandBConfig, experiment_name: str, trial_name: str, settings: Mapping[str, Any]
    ) -> None:
        import wandb

        self._run = wandb.init(
            mode=config.mode,
            project=config.project or experiment_name,
            entity=config.entity,
            name=config.name or trial_name,
            group=config.group,
            tags=config.tags or None,
            notes=config.notes,
            dir=str(run),
            id=_kept_id(run / "wandb" / "run_id"),
            resume="allow" if config.mode == "online" else None,
            config=dict(settings),
            settings=wandb.Settings(console="off"),
        )
        # W&B's own step only increases, so it would drop the steps that a resumed run repeats; ours is the x-axis.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, stats: Stats) -> None:
        self._run.log({"step": step, **stats})

    def close(self) -> None:
        self._run.finish()


class SwanLab:
    """A SwanLab run."""

    def __init__(
        self, run: Path, config: SwanlabConfig, experiment_name: str, trial_name: str, settings: Mapping[str, Any]
    ) -> None:
        import swanlab

        self._swanlab = swanlab
        logdir = Path(config.logdir) if config.logdir else run / "swanlab"
        logdir.mkdir(parents=True, exist_ok=True)
        swanlab.init(
            mode=config.mode,
            project=config.project or experiment_name,
            experiment_name=config.name or trial_name,
            logdir=str(logdir),
            config=dict(settings),
        )

    def log(self, step: int, stats: Stats) -> None:
        self._swanlab.log(dict(stats), step=step)

    def close(self) -> None:
        self._swanlab.finish()


class TensorBoard:
    """TensorBoard event files. Steps that a resume or a rollback repeats replace the earlier points."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None
        self._last_step = -1

    def log(self, step: int, stats: Stats) -> None:
        if step <= self._last_step:  # the run was rolled back
            self.close()
        self._last_step = step
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._directory), purge_step=step)
        for name, value in stats.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class MLflow:
    """A run of MLflow; a resumed run continues the same one. The configuration is its artifact ``config.json``."""

    MAX_METRICS = 1_000  # of a request

    def __init__(
        self, run: Path, config: MLflowConfig, experiment_name: str, trial_name: str, settings: Mapping[str, Any]
    ) -> None:
        try:
            from mlflow.entities import Metric
            from mlflow.tracking import MlflowClient
        except ModuleNotFoundError as error:
            raise _not_installed("stats_logger.mlflow.tracking_uri", "mlflow", error) from error
        self._metric = Metric
        self._client = MlflowClient(tracking_uri=config.tracking_uri)
        file = run / "mlflow" / "run_id"
        if file.is_file():
            self._id = file.read_text().strip()
            self._client.update_run(self._id, status="RUNNING")
            return
        name = config.experiment or experiment_name
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        created = self._client.create_run(experiment, run_name=config.name or trial_name, tags=config.tags)
        self._id = created.info.run_id
        self._client.log_dict(self._id, dict(settings), "config.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self._id)

    def log(self, step: int, stats: Stats) -> None:
        now_ms = int(time.time() * 1000)
        # MLflow refuses names with other characters, such as pass@8.
        metrics = [self._metric(name.replace("@", "_at_"), value, now_ms, step) for name, value in stats.items()]
        for start in range(0, len(metrics), self.MAX_METRICS):
            self._client.log_batch(self._id, metrics=metrics[start : start + self.MAX_METRICS])

    def close(self) -> None:
        self._client.set_terminated(self._id)


class Trackio:
    """A run of Trackio; a resumed run continues the same one."""

    def __init__(
        self, config: TrackioConfig, experiment_name: str, trial_name: str, settings: Mapping[str, Any]
    ) -> None:
        try:
            import trackio
        except ModuleNotFoundError as error:
            raise _not_installed("stats_logger.trackio.mode", "trackio", error) from error
        self._run = trackio.init(
            project=config.project or experiment_name,
            name=config.name or trial_name,
            space_id=config.space_id,
            config=dict(settings),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, stats: Stats) -> None:
        self._run.log(dict(stats), step=step)

    def close(self) -> None:
        self._run.finish()


def _not_installed(key: str, package: str, error: ModuleNotFoundError) -> ValueError:
    return ValueError(f"{key} is set, which needs {error.name} in the trainer's environment: pip install {package}")


def _kept_id(file: Path) -> str:
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(uuid.uuid4().hex[:8])
    return file.read_text().strip()


def _require_wandb_key() -> None:
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    named = any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))
    if not named and not _in_netrc(Path(os.environ.get("NETRC", "~/.netrc")).expanduser(), host):
        raise ValueError(
            "stats_logger.wandb.mode is online, but there is no API key; set WANDB_API_KEY, run `wandb login`, or set "
            "stats_logger.wandb.mode=offline"
        )


def _require_swanlab_key() -> None:
    saved = Path(os.environ.get("SWANLAB_SAVE_DIR", "~/.swanlab")).expanduser() / ".netrc"
    if not os.environ.get("SWANLAB_API_KEY") and not _in_netrc(saved):
        raise ValueError(
            "stats_logger.swanlab.mode is cloud, but there is no API key; set SWANLAB_API_KEY, run `swanlab login`, or "
            "set stats_logger.swanlab.mode=local"
        )


def _in_netrc(file: Path, host: str | None = None) -> bool:
    try:
        hosts = netrc.netrc(str(file)).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return bool(hosts) if host is None else host in hosts
