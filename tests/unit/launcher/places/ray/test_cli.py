"""``grpo --on ray`` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from areal_launcher import cli
from areal_launcher.places.ray import train as ray_train


def test_the_options_reach_the_run(experiment_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(ray_train, "train", lambda request, **options: given.update(options) or 0)
    options = ["--address", "10.0.0.1:6379", "--port", "31000", "--detach", "--force"]
    assert cli.main(["run", "--on", "ray", str(experiment_path), *options]) == 0
    assert given == {"address": "10.0.0.1:6379", "port": 31000, "detach": True, "force": True}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--address", "10.0.0.1:6379"], "--address applies only to Ray; add --on ray"),
        (["run", "--on", "ray", "--partition", "gpu"], "--partition does not apply to --on ray; omit it"),
        (["run", "--on", "ray", "--checkpoint"], "--checkpoint does not apply to --on ray; omit it"),
        (["run", "--on", "ray", "--namespace", "x"], "--namespace does not apply to --on ray; omit it"),
        (["check", "--on", "ray", "--nodes", "8"], "--nodes does not apply to --on ray; omit it"),
    ],
)
def test_options_of_another_place_are_refused(
    experiment_path: Path, arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([arguments[0], str(experiment_path), *arguments[1:]]) == 2
    assert message in capfd.readouterr().err
