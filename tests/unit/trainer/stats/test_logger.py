"""Statistics survive a kill, are never duplicated by a resume, and reach the services in their offline modes."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from areal_api.loggers import StatsLoggerConfig
from areal_trainer.stats.logger import StatsLogger, Timings, write_summary

ROOT = Path(__file__).parents[4]


def logger(run: Path, **services: Any) -> StatsLogger:
    return StatsLogger(
        run, StatsLoggerConfig(**services), experiment_name="gsm8k", trial_name="trial0", settings={"seed": 1}
    )


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def test_each_step_is_written_immediately(tmp_path: Path) -> None:
    stats = logger(tmp_path)
    stats.commit({"step": 1, "version": 1, "task_reward/avg": 0.25})
    assert lines(tmp_path) == [{"step": 1, "version": 1, "task_reward/avg": 0.25}]
    stats.commit({"step": 2, "version": 2, "task_reward/avg": 0.5})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    stats.close()


def test_non_finite_numbers_are_null(tmp_path: Path) -> None:
    with logger(tmp_path) as stats:
        stats.commit({"step": 1, "grad_norm": math.inf, "loss": math.nan})
    assert lines(tmp_path) == [{"step": 1, "grad_norm": None, "loss": None}]


def test_a_resumed_run_has_no_duplicate_steps(tmp_path: Path) -> None:
    with logger(tmp_path) as stats:
        for step in range(1, 6):
            stats.commit({"step": step, "try": 1})
    with logger(tmp_path) as stats:
        assert stats.rewind(3) == 3
        stats.commit({"step": 4, "try": 2})
    assert [(line["step"], line["try"]) for line in lines(tmp_path)] == [(1, 1), (2, 1), (3, 1), (4, 2)]


def test_an_incomplete_line_is_dropped(tmp_path: Path) -> None:
    with logger(tmp_path) as stats:
        stats.commit({"step": 1})
        stats.commit({"step": 2})
    file = tmp_path / "stats.jsonl"
    file.write_bytes(file.read_bytes()[:-4])
    with logger(tmp_path) as stats:
        assert stats.rewind(2) == 1
        stats.commit({"step": 2})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_line_without_newline_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "stats.jsonl").write_text('{"step": 1}\n{"step": 2}')
    with logger(tmp_path) as stats:
        assert stats.rewind(5) == 1


def test_rewind_of_a_new_run_does_nothing(tmp_path: Path) -> None:
    with logger(tmp_path / "new") as stats:
        assert stats.rewind(0) == 0
        stats.commit({"step": 1})
    assert lines(tmp_path / "new") == [{"step": 1}]


def test_the_summary_is_replaced_atomically(tmp_path: Path) -> None:
    write_summary(tmp_path, {"outcome": "succeeded", "steps": 3})
    write_summary(tmp_path, {"outcome": "failed", "steps": 4})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"outcome": "failed", "steps": 4}
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_stages_add_up_and_failed_blocks_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0, 20.5])
    monkeypatch.setattr("areal_trainer.stats.logger.time.perf_counter", lambda: next(clock))
    timings = Timings()
    with timings.stage("rollout"):
        pass
    with pytest.raises(RuntimeError), timings.stage("rollout"):
        raise RuntimeError
    with timings.stage("save"):
        pass
    timings.add("save", 0.25)
    assert timings.as_stats() == {"timeperf/rollout": 3.0, "timeperf/save": 0.75}


def test_a_resumed_run_replaces_its_points_in_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with logger(tmp_path, tensorboard={"path": "events"}) as stats:
        for step in (1, 2, 3):
            stats.commit({"step": step, "task_reward/avg": step / 4})
    with logger(tmp_path, tensorboard={"path": "events"}) as stats:
        stats.rewind(1)
        stats.commit({"step": 2, "task_reward/avg": 1.0})
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("task_reward/avg")] == [(1, 0.25), (2, 1.0)]


def test_wandb_offline_continues_its_run_after_a_resume(tmp_path: Path) -> None:
    for step in (1, 2):
        with logger(tmp_path, wandb={"mode": "offline", "tags": ["grpo"]}) as stats:
            stats.commit({"step": step, "task_reward/avg": 0.5})
    written = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len({file.name for file in written}) == 1  # one run
    assert b"task_reward/avg" in b"".join(file.read_bytes() for file in written)


@pytest.mark.parametrize("mode", ["local", "offline"])
def test_swanlab_writes_its_log(tmp_path: Path, mode: str) -> None:
    with logger(tmp_path, swanlab={"mode": mode}) as stats:
        stats.commit({"step": 1, "task_reward/avg": 0.5})
    [run] = (tmp_path / "swanlab").glob("run-*")
    assert any(file.suffix == ".swanlab" and file.stat().st_size for file in run.iterdir())


@pytest.mark.parametrize(
    ("service", "mode", "variable"),
    [("wandb", "online", "WANDB_API_KEY"), ("swanlab", "cloud", "SWANLAB_API_KEY")],
)
def test_a_missing_api_key_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: str, mode: str, variable: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (variable, "WANDB_IDENTITY_TOKEN_FILE", "NETRC", "SWANLAB_SAVE_DIR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=rf"stats_logger\.{service}\.mode is {mode}.*set {variable}"):
        logger(tmp_path, **{service: {"mode": mode}})


@pytest.mark.parametrize("service", ["mlflow", "trackio"])
def test_services_with_their_own_environment_continue_their_run(tmp_path: Path, service: str) -> None:
    python = ROOT / ".bin/loggers/bin/python"
    if not python.exists():
        pytest.skip("MLflow and Trackio are not installed: make loggers")
    paths = [str(ROOT / folder) for folder in ("crds", "trainer_image")]
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(paths)}
    script = Path(__file__).with_name("in_loggers.py")
    done = subprocess.run(
        [python, script, service, tmp_path],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [run] = json.loads(next(text for text in done.stdout.splitlines() if text.startswith("[{")))
    pass_at_8 = "eval-rollout/pass_at_8" if service == "mlflow" else "eval-rollout/pass@8"
    assert run["points"] == {"task_reward/avg": [[1, 0.25], [2, 0.75]], pass_at_8: [[1, 0.5], [2, 1.0]]}
    assert run["name"] == "first"
    assert run.get("state", "FINISHED") == "FINISHED"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mlflow": {"tracking_uri": "http://x"}}, "needs mlflow in the trainer's environment: pip install mlflow"),
        ({"trackio": {"mode": "local"}}, "needs trackio in the trainer's environment: pip install trackio"),
    ],
)
def test_a_service_that_is_not_installed_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        logger(tmp_path, **settings)
