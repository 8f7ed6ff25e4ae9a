"""Experiments from Python, on this machine; tests/control_plane has those in a cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from areal_api import names
from areal_launcher import run_files
from areal_launcher.client import Experiment
from areal_launcher.errors import RunError
from areal_launcher.run_files import RunLock
from support.local_runs import append, line
from support.rollout_files import sample, write_samples


@pytest.fixture
def experiment(experiment_path: Path, tmp_path: Path) -> Experiment:
    """An experiment whose directory looks like a run that has finished two steps."""
    found = Experiment.from_yaml(experiment_path, f"config.cluster.fileroot={tmp_path / 'runs'}")
    found.directory.mkdir(parents=True)
    names.config_file(found.directory).write_text("{}")
    append(names.stats_file(found.directory), line(1), line(2, total_steps=9.0))
    return found


def test_the_history_is_a_table_by_step(experiment: Experiment) -> None:
    history = experiment.history()
    assert list(history.index) == [1, 2]
    assert history["task_reward/avg"].tolist() == [0.1, 0.2]
    names.stats_file(experiment.directory).write_text("")
    assert experiment.history().empty


def test_rollouts_are_a_table_of_samples(experiment: Experiment) -> None:
    assert experiment.rollouts().empty
    for step in (9, 10):
        write_samples(experiment.directory, step, sample("a", reward=0.0), sample("b"))
    newest = experiment.rollouts()
    assert (set(newest["step"]), newest["reward"].mean()) == ({10}, 0.5)
    assert len(experiment.rollouts([9, 10])) == 4
    assert newest["tokens"][0] == ["problem ", "a", "an", " answer", "<end>"]
    with pytest.raises(ValueError, match=r"no samples of step 3; runs with rollout\.dump_to_file: true"):
        experiment.rollouts([3])


def test_a_run_is_followed_until_it_ends(experiment: Experiment) -> None:
    lock = RunLock(experiment.directory)
    states = experiment.follow(poll_s=0.01)
    first = next(states)
    assert (first.state, first.step, first.total_steps) == ("running", 2, 9)
    append(names.stats_file(experiment.directory), line(3))
    assert next(states).step == 3
    names.summary_file(experiment.directory).write_text(json.dumps({"outcome": "succeeded"}))
    lock.release()
    assert [status.state for status in states] == ["succeeded"]


def test_requests_reach_the_launcher(experiment: Experiment) -> None:
    with pytest.raises(ValueError, match="no grpo run uses it"):
        experiment.suspend()
    lock = RunLock(experiment.directory)
    experiment.suspend()
    assert run_files.take_stop_request(experiment.directory) is False
    experiment.stop(now=True)
    assert run_files.take_stop_request(experiment.directory) is True
    experiment.scale(3)
    assert run_files.take_scale_request(experiment.directory) == 3
    lock.release()


def test_a_run_that_cannot_start_says_why(experiment_path: Path, tmp_path: Path) -> None:
    found = Experiment.from_yaml(
        experiment_path, f"config.cluster.fileroot={tmp_path}", "config.actor.path=./no-such-model"
    )
    with pytest.raises(RunError) as error:
        found.run(wait=False)
    assert any("no-such-model" in text for text in error.value.lines)
    with pytest.raises(ValueError, match="no-such-model"):
        found.run()


def test_options_of_a_cluster_need_a_cluster(experiment_path: Path) -> None:
    with pytest.raises(ValueError, match='pass on="kubernetes"'):
        Experiment.from_yaml(experiment_path, namespace="team")
