"""This machine as a place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from areal_launcher.core.place import PORT, ProcessSpec
from areal_launcher.errors import RunError
from areal_launcher.places.local.place import LocalPlace
from support.process_trees import DEADLINE_S, python

PRINT = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"


def started(place: LocalPlace, spec: ProcessSpec) -> tuple[list[str], dict[str, str]]:
    process = place.start(spec)
    assert process.wait(DEADLINE_S) == 0
    arguments, env = json.loads(process.tail(1)[0])
    return arguments, env


def test_gpus_are_separate_and_kept_over_restarts(tmp_path: Path) -> None:
    place = LocalPlace(gpus=["0", "1", "4", "5"])
    specs = [ProcessSpec("server", i, python(PRINT), {}, tmp_path / "log", gpus=2) for i in range(2)]
    assert [started(place, spec)[1]["CUDA_VISIBLE_DEVICES"] for spec in [*specs, specs[0]]] == ["0,1", "4,5", "0,1"]
    with pytest.raises(RunError, match="trainer needs 1 GPUs, 0 are free"):
        place.start(ProcessSpec("trainer", 0, python(PRINT), {}, tmp_path / "log", gpus=1))
    place.close()


def test_a_port_is_kept_over_restarts(tmp_path: Path) -> None:
    place = LocalPlace()
    spec = ProcessSpec("server", 0, [*python(PRINT), PORT], {}, tmp_path / "log")
    first, second = started(place, spec)[0], started(place, spec)[0]
    assert first == second != [PORT]
    place.close()


def test_a_process_inherits_the_launchers_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONUTF8", "0")
    place = LocalPlace()
    _, env = started(place, ProcessSpec("trainer", 0, python(PRINT), {"A": "b"}, tmp_path / "log"))
    assert {**os.environ, "A": "b"}.items() <= env.items()
    place.close()
