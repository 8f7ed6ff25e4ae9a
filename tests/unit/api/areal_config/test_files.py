"""AReaL's files are read as AReaL reads them: base files, default values, environment variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_api.areal_config.files import has_areal_keys
from areal_api.errors import ConfigError
from areal_api.load import load_experiment

BASE = """
experiment_name: base
allocation_mode: sglang:d1+d1
actor: {path: Qwen/Qwen2.5-0.5B, optimizer: {lr: 1.0e-5}}
train_dataset: {path: openai/gsm8k, batch_size: 4}
"""


def write(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_file_builds_on_its_base_files(tmp_path: Path) -> None:
    write(tmp_path, "math/base.yaml", BASE)
    text = "defaults: [../math/base@_global_, _self_]\nexperiment_name: top\nactor: {optimizer: {lr: 2.0e-5}}\n"
    spec = load_experiment(write(tmp_path, "dte/top.yaml", text)).spec
    assert (spec.config.experiment_name, spec.config.actor.path) == ("top", "Qwen/Qwen2.5-0.5B")
    assert spec.config.actor.optimizer.lr == 2e-5


def test_a_base_file_after_the_file_itself_takes_precedence(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", BASE)
    top = write(tmp_path, "top.yaml", "defaults: [_self_, base]\nexperiment_name: top\n")
    assert load_experiment(top).spec.config.experiment_name == "base"


def test_files_that_build_on_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "defaults: [b]\nexperiment_name: a\n")
    write(tmp_path, "b.yaml", "defaults: [a]\nexperiment_name: b\n")
    with pytest.raises(ConfigError, match="more than 8 files build on each other"):
        load_experiment(tmp_path / "a.yaml")


def test_a_configuration_group_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"defaults: \{'db': 'mysql'\} is not a file"):
        load_experiment(write(tmp_path, "a.yaml", "defaults: [{db: mysql}]\nexperiment_name: a\n"))


def test_a_missing_base_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such file"):
        load_experiment(write(tmp_path, "a.yaml", "defaults: [gone]\nexperiment_name: a\n"))


def test_references_find_areals_defaults(tmp_path: Path) -> None:
    text = BASE.replace("actor: {", "actor: {max_new_tokens: '${gconfig.max_new_tokens}', dtype: '${actor.dtype}', ")
    with pytest.raises(ConfigError, match="references form a cycle"):
        load_experiment(write(tmp_path, "a.yaml", text))
    text = text.replace(", dtype: '${actor.dtype}'", "") + "gconfig: {n_samples: 4, max_new_tokens: 16384}\n"
    assert load_experiment(write(tmp_path, "b.yaml", text)).spec.config.gconfig.max_new_tokens == 16384
    text = text.replace(", max_new_tokens: 16384", "")
    assert load_experiment(write(tmp_path, "c.yaml", text)).spec.config.gconfig.n_samples == 4


def test_a_variable_in_a_dropped_key_need_not_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    text = BASE + "rollout: {admin_api_key: '${oc.env:NO_SUCH_VARIABLE}'}\n"
    assert load_experiment(write(tmp_path, "a.yaml", text)).name == "base"
    with pytest.raises(ConfigError, match="environment variable NO_SUCH_VARIABLE is not set"):
        load_experiment(write(tmp_path, "b.yaml", BASE + "trial_name: ${oc.env:NO_SUCH_VARIABLE}\n"))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"allocation_mode": "sglang:d1+d1"}, True),
        ({"rollout": {"backend": "sglang:d1"}}, True),
        ({"actor": {"path": "x"}, "seed": 1}, False),
    ],
)
def test_areals_files_are_recognised_by_their_keys(config: dict[str, object], expected: bool) -> None:
    assert has_areal_keys(config) is expected


def test_references_in_dropped_sections_need_not_resolve(tmp_path: Path) -> None:
    text = BASE.replace("actor: {", "actor: {scheduling_spec: [{cmd: '${ROOT:-/x}'}], ")
    text += "ref: {scheduling_spec: '${actor.no_such}'}\nstats_logger: {wandb: {wandb_api_key: '${env.KEY}'}}\n"
    assert load_experiment(write(tmp_path, "a.yaml", text)).spec.config.experiment_name == "base"


def test_another_algorithm_is_named_before_references_are_resolved(tmp_path: Path) -> None:
    text = BASE + "critic: {mask_no_eos_with_zero: '${actor.mask_no_eos_with_zero}'}\n"
    with pytest.raises(ConfigError, match="PPO with a critic"):
        load_experiment(write(tmp_path, "a.yaml", text))


def test_a_skypilot_task_is_named(tmp_path: Path) -> None:
    text = "resources: {accelerators: A100:8}\nnum_nodes: 2\nrun: python train.py --config a.yaml\n"
    with pytest.raises(ConfigError, match="is a task of SkyPilot"):
        load_experiment(write(tmp_path, "sky.yaml", text))
