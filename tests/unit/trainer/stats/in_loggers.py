"""Logs two starts of a run to MLflow or Trackio and prints what the package itself reads back, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from areal_api.loggers import StatsLoggerConfig
from areal_trainer.stats.sinks import open_sinks

LINES = [{"task_reward/avg": 0.25, "eval-rollout/pass@8": 0.5}, {"task_reward/avg": 0.75, "eval-rollout/pass@8": 1.0}]


def main(service: str, run: Path) -> None:
    """Log a step in each of two starts."""
    store = f"sqlite:///{run / 'mlflow.db'}"
    settings: dict[str, Any] = {"mlflow": {"tracking_uri": store, "tags": {"team": "a"}}, "trackio": {"mode": "local"}}
    config = StatsLoggerConfig.model_validate({service: settings[service]})
    for step, line in enumerate(LINES, start=1):
        [sink] = open_sinks(run, config, experiment_name="tiny", trial_name="first", settings={"seed": 1})
        sink.log(step, line)
        sink.close()
    print(json.dumps(read_mlflow(store) if service == "mlflow" else read_trackio()))


def read_mlflow(store: str) -> Any:
    """Name, state, tags and points of each run."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    return [
        {
            "name": run.info.run_name,
            "state": run.info.status,
            "team": run.data.tags["team"],
            "points": {
                name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
                for name in run.data.metrics
            },
        }
        for run in client.search_runs([experiment.experiment_id])
    ]


def read_trackio() -> Any:
    """Name and points of each run."""
    import trackio

    found = []
    for run in trackio.Api().runs("tiny"):
        lines = trackio.SQLiteStorage.get_logs("tiny", run.name)
        names = LINES[0]
        points = {name: [(line["step"], line[name]) for line in lines if name in line] for name in names}
        found.append({"name": run.name, "points": points})
    return found


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
