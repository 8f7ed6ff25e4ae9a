"""AReaL's scheduling_spec and launcher sections."""

from __future__ import annotations

from typing import Any

import pytest

from areal_api.areal_config.scheduling import convert_scheduling
from areal_api.areal_config.tree import Notes
from areal_api.errors import ConfigError


def converted(config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    spec: dict[str, Any] = {}
    notes = Notes()
    convert_scheduling(config, spec, notes)
    return spec, "\n".join(notes.lines())


def test_a_scheduling_spec_becomes_options_of_slurm_and_variables() -> None:
    actor = {"cpu": 4, "mem": 32, "gpu": 1, "cmd": "rpc_server", "env_vars": {"NCCL_DEBUG": "WARN", "N": 3}}
    rollout = {"cpu": 8, "mem": 16, "env_vars": {"A": "a b"}, "nodelist": "n[1-4]", "exclude": None}
    config = {
        "cluster": {"n_gpus_per_node": 4},
        "actor": {"scheduling_spec": [actor]},
        "rollout": {"scheduling_spec": rollout},
    }
    spec, notes = converted(config)
    assert spec == {
        "servers": {"env": [{"name": "A", "value": "a b"}]},
        "trainer": {"env": [{"name": "NCCL_DEBUG", "value": "WARN"}, {"name": "N", "value": "3"}]},
        "slurm": {"cpusPerNode": 32, "args": ["--mem=131072M", "--nodelist=n[1-4]"]},
    }
    assert config == {"cluster": {"n_gpus_per_node": 4}, "actor": {}, "rollout": {}}
    for key in ("actor.scheduling_spec.cpu", "rollout.scheduling_spec.mem", "actor.scheduling_spec.cmd"):
        assert key in notes


def test_the_launcher_section_of_earlier_releases_becomes_the_same() -> None:
    launcher = {
        "inference_server_cpus_per_gpu": 4,
        "trainer_mem_per_gpu": 1024,
        "trainer_env_vars": "A=1,B=x=y",
        "slurm": {"mount": "/storage:/storage", "trainer_image": "areal.sif"},
    }
    spec, notes = converted({"launcher": launcher})
    assert spec["slurm"] == {"cpusPerNode": 32, "args": ["--mem=8192M"]}
    assert spec["trainer"]["env"] == [{"name": "A", "value": "1"}, {"name": "B", "value": "x=y"}]
    assert "launcher.slurm.mount, launcher.slurm.trainer_image: the container must hold this project" in notes


def test_secrets_and_mistaken_units_are_named_but_not_stored() -> None:
    entry = {"mem": 8192, "env_vars": {"WANDB_API_KEY": "hidden", "HF_TOKEN": "hidden", "TOKENIZERS_PARALLELISM": "0"}}
    spec, notes = converted({"actor": {"scheduling_spec": [entry]}})
    assert spec == {"trainer": {"env": [{"name": "TOKENIZERS_PARALLELISM", "value": "0"}]}}
    assert "actor.scheduling_spec.env_vars.WANDB_API_KEY, actor.scheduling_spec.env_vars.HF_TOKEN: secrets" in notes
    assert "more memory per GPU than a node has" in notes
    assert "hidden" not in notes


def test_files_without_gpus_ask_for_nothing_on_slurm() -> None:
    config = {"cluster": {"n_gpus_per_node": 0}, "actor": {"scheduling_spec": [{"cpu": 4, "mem": 32, "gpu": 0}]}}
    assert converted(config)[0] == {}
    assert converted({"actor": {"scheduling_spec": None}, "launcher": None})[0] == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"actor": {"scheduling_spec": [{"cpu": "many"}]}}, r"actor.scheduling_spec.cpu is 'many'; write a whole"),
        ({"actor": {"scheduling_spec": [{"mem": True}]}}, "actor.scheduling_spec.mem is true"),
        ({"actor": {"scheduling_spec": "worker"}}, "actor.scheduling_spec: 'worker' is not a mapping"),
        ({"rollout": {"scheduling_spec": [{"env_vars": "A=1"}]}}, "rollout.scheduling_spec.env_vars is 'A=1'"),
        ({"rollout": {"scheduling_spec": [{"exclude": 3}]}}, "rollout.scheduling_spec.exclude is 3"),
        ({"launcher": {"trainer_env_vars": "A"}}, "launcher.trainer_env_vars is 'A'; write variables as NAME=VALUE"),
        ({"launcher": "slurm"}, "launcher is 'slurm', not a section"),
    ],
)
def test_values_of_another_kind_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        converted(config)
