"""One rule tells a path from a hub name, for launcher, trainer and server."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_api.paths import expand_home, is_local_path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "runs" / "model").mkdir(parents=True)
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "text", ["model", "runs/model", "runs/missing", "./missing", "../missing", "/missing", "~/missing", "~", "a/b/c",
             "a b", "data.jsonl/x/y", ".hidden", ""],
)  # fmt: skip
def test_a_path_is_local_whether_it_exists_or_not(text: str) -> None:
    assert is_local_path(text)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("text", ["gpt2", "openai/gsm8k", "Qwen/Qwen3-1.7B", "missing/model", "other"])
def test_a_name_on_the_hub_is_not_local(text: str) -> None:
    assert not is_local_path(text)


def test_only_a_leading_tilde_is_expanded(here: Path) -> None:
    assert expand_home("~/x") == str(here / "x")
    assert expand_home("a~/x") == "a~/x"
