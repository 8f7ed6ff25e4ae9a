"""A resumed run must be the run that wrote the checkpoints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_api.config import GRPOConfig
from areal_api.data_config import MixedSet
from areal_api.render import config_yaml
from areal_launcher.core.resume import IDENTITY, check_resume, lookup

CHANGES: dict[str, Any] = {
    "seed": 99,
    "tokenizer_path": "other/tokenizer",
    "actor.path": "other/model",
    "ref.path": "other/model",
    "train_dataset.path": "other/data",
    "train_dataset.name": "other",
    "train_dataset.split": "other",
    "train_dataset.batch_size": 17,
    "train_dataset.shuffle": False,
    "train_dataset.drop_last": False,
    "train_dataset.max_length": 11,
    "train_dataset.limit": 12,
    "train_dataset.question_column": "other",
    "train_dataset.answer_column": "other",
    "train_dataset.instruction": "other",
    "train_mix": [MixedSet(name="more", weight=1.0, path="more/data").model_dump()],
}


def config(**changes: Any) -> GRPOConfig:
    values: dict[str, Any] = {
        "experiment_name": "e",
        "actor": {"path": "a/model"},
        "ref": {"path": "a/model"},
        "train_dataset": {"path": "a/data", "batch_size": 4},
    }
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        (values.setdefault(section, {}) if section else values)[name] = value
    return GRPOConfig.model_validate(values)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return started(tmp_path)


def started(run: Path) -> Path:
    """A run with a recovery checkpoint."""
    (run / "recover" / "step3").mkdir(parents=True)
    (run / "config.yaml").write_text(config_yaml(config()))
    return run


def test_the_table_covers_every_key() -> None:
    assert set(CHANGES) == set(IDENTITY)


@pytest.mark.parametrize("key", IDENTITY)
def test_a_change_of_the_problems_or_the_model_is_refused_with_the_difference(run: Path, key: str) -> None:
    check_resume(config(), run)
    old, new = lookup(config().model_dump(mode="json"), key), CHANGES[key]
    message = re.escape(f"{key} was {old!r} and is {new!r}. Restore it, or start a new run")
    with pytest.raises(ValueError, match=message):
        check_resume(config(**{key: new}), run)


@settings(deadline=None, max_examples=40)
@given(keys=st.sets(st.sampled_from(IDENTITY)))
def test_every_difference_is_named_and_no_other(tmp_path_factory: pytest.TempPathFactory, keys: set[str]) -> None:
    run = started(tmp_path_factory.mktemp("run"))
    changed = config(**{key: CHANGES[key] for key in keys})
    message = ""
    try:
        check_resume(changed, run)
    except ValueError as error:
        message = str(error)
    assert {key for key in IDENTITY if f"{key} was " in message} == keys


@pytest.mark.parametrize(
    "changes",
    [{"total_train_steps": 50}, {"trial_name": "other"}, {"train_dataset.num_workers": 2}, {"recover.keep": 5}],
)
def test_what_a_run_may_change_is_accepted(run: Path, changes: dict[str, Any]) -> None:
    check_resume(config(**changes), run)


def test_a_new_run_or_one_without_recovery_is_not_checked(run: Path, tmp_path: Path) -> None:
    check_resume(config(seed=99), tmp_path / "new")
    check_resume(config(**{"seed": 99, "recover.mode": "disabled"}), run)


def test_the_same_file_under_another_path_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recover" / "step1").mkdir(parents=True)
    (tmp_path / "data.jsonl").touch()
    (tmp_path / "config.yaml").write_text(config_yaml(config(**{"train_dataset.path": "data.jsonl"})))
    monkeypatch.chdir(tmp_path)
    check_resume(config(**{"train_dataset.path": str(tmp_path / "data.jsonl")}), tmp_path)


def test_a_configuration_written_by_an_older_version_lacks_keys(run: Path) -> None:
    (run / "config.yaml").write_text("seed: 1\ntrain_dataset: {path: a/data}\nref: null\n")
    with pytest.raises(ValueError, match=r"ref.path was None and is 'a/model'"):
        check_resume(config(), run)
