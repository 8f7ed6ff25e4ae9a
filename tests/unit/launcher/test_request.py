"""Arguments that select an experiment."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_launcher.request import Request


def test_arguments_are_sorted_by_their_form(tmp_path: Path) -> None:
    script = tmp_path / "my script.py"
    script.touch()
    request = Request.parse(["config.seed=1", "e.yaml", str(script)], None)
    assert request == Request(Path("e.yaml"), str(script), ["config.seed=1"])


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "train.py").touch()
    request = Request.parse(["~/train.py", "~/experiment.yaml"], None)
    assert request == Request(tmp_path / "experiment.yaml", str(tmp_path / "train.py"), [])


@pytest.mark.parametrize("items", [["x"], ["a.yaml", "b.yml"], ["/nowhere/a.py"]])
def test_other_arguments_are_refused(items: list[str]) -> None:
    with pytest.raises(ValueError, match=items[0]):
        Request.parse(items, None)
