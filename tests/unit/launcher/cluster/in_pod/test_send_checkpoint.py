"""The newest checkpoint, sent from a pod."""

from __future__ import annotations

import os
from pathlib import Path

from areal_launcher.cluster.in_pod.send_checkpoint import newest


def test_the_newest_complete_checkpoint_is_chosen(tmp_path: Path) -> None:
    for number, (name, complete) in enumerate([("a", True), ("b", True), ("c", False), (".part", True)]):
        (tmp_path / name).mkdir()
        if complete:
            (tmp_path / name / "config.json").touch()
        os.utime(tmp_path / name, (number, number))
    assert newest(str(tmp_path)) == str(tmp_path / "b")
    assert newest(str(tmp_path / "c")) is None
