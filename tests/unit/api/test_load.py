"""Files, overrides, interpolation, and errors that are ready to print."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from areal_api import names
from areal_api.config import GRPOConfig
from areal_api.errors import ConfigError
from areal_api.load import (
    load_experiment,
    load_expr_config,
    parse_experiment,
    read_resolved_config,
    with_home_expanded,
)
from areal_api.render import config_yaml
from hack.testbed.experiment_case import Case

EXPERIMENT = """\
apiVersion: areal.dev/v1alpha1
kind: GRPOExperiment
metadata: {name: tiny}
spec:
  config:
    tokenizer_path: ${actor.path}
    actor: {path: model, ppo_n_minibatches: 1, optimizer: {lr: 1e-5}}
    train_dataset: {path: data.jsonl, batch_size: 4}
    rollout: {consumer_batch_size: "${train_dataset.batch_size}"}
  servers: {replicas: 2, device: cpu}
  trainer: {device: cpu}
"""

BARE = """\
experiment_name: bare
actor: {path: model, ppo_n_minibatches: 1}
train_dataset: {path: data.jsonl, batch_size: 4}
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    path = tmp_path / "bare.yaml"
    path.write_text(BARE)
    return path


def error_of(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, overrides)
    return str(caught.value).replace(f"{path}: ", "")


def test_interpolation_and_exponents_are_read(experiment: Path) -> None:
    config = load_experiment(experiment).spec.config
    assert (config.tokenizer_path, config.rollout.consumer_batch_size) == ("model", 4)
    assert config.actor.optimizer.lr == 1e-5


def test_the_experiment_names_its_configuration(experiment: Path) -> None:
    assert load_experiment(experiment).spec.config.experiment_name == "tiny"
    named = load_experiment(experiment, ["config.experiment_name=other"])
    assert (named.name, named.spec.config.experiment_name) == ("tiny", "other")


def test_overrides_of_an_experiment_start_at_spec(experiment: Path) -> None:
    spec = load_experiment(experiment, ["config.actor.path=other", "servers.replicas=3", "trainer.nodes=2"]).spec
    assert (spec.config.actor.path, spec.servers.replicas, spec.trainer.nodes) == ("other", 3, 2)


def test_an_override_comes_before_interpolation(experiment: Path) -> None:
    assert load_experiment(experiment, ["config.actor.path=other"]).spec.config.tokenizer_path == "other"
    spec = load_experiment(experiment, ["config.train_dataset.batch_size=8", "config.seed=${train_dataset.batch_size}"])
    assert (spec.spec.config.rollout.consumer_batch_size, spec.spec.config.seed) == (8, 8)


def test_values_are_yaml(experiment: Path) -> None:
    overrides = [
        "config.gconfig.stop=[a, 'b']",
        "config.valid_dataset=null",
        "config.gconfig={n_samples: 4, stop: [x]}",
    ]
    config = load_experiment(experiment, overrides).spec.config
    assert (config.gconfig.n_samples, config.gconfig.stop, config.valid_dataset) == (4, ["x"], None)


def test_a_section_that_the_file_lacks_is_made(experiment: Path) -> None:
    config = load_experiment(experiment, ["config.valid_dataset.path=held.jsonl"]).spec.config
    assert config.valid_dataset is not None
    assert config.valid_dataset.path == "held.jsonl"


def test_the_script_takes_the_place_of_the_loop(experiment: Path) -> None:
    assert load_experiment(experiment, script="my.py").spec.trainer.script == "my.py"
    assert load_experiment(experiment).spec.trainer.script is None


def test_free_form_keys_take_anything(experiment: Path) -> None:
    spec = load_experiment(experiment, ["servers.args.watchdog_timeout=5", "servers.resources.limits.cpu=2"]).spec
    assert (spec.servers.args, spec.servers.resources) == ({"watchdog_timeout": 5}, {"limits": {"cpu": 2}})


def test_plus_gives_sglang_what_has_no_key_here(experiment: Path, bare: Path) -> None:
    assert load_experiment(experiment, ["+config.sglang.page_size=2"]).spec.servers.args == {"page_size": 2}
    spec = load_experiment(bare, ["+sglang.page_size=2", "+sglang.attention_backend=triton"]).spec
    assert (spec.servers.args, spec.config.sglang.attention_backend) == ({"page_size": 2}, "triton")


def test_plus_gives_nothing_else_a_key(bare: Path) -> None:
    assert error_of(bare, "+actor.lr=1") == (
        "override +actor.lr=1: unknown key actor.lr; did you mean actor.optimizer.lr?"
    )


def test_a_bare_configuration_is_one_server_and_one_rank(bare: Path) -> None:
    experiment = load_experiment(bare, ["servers.replicas=2", "trainer.device=cpu", "runPolicy.backoffLimit=0"])
    assert (experiment.name, experiment.spec.servers.replicas, experiment.spec.trainer.ranks) == ("bare", 2, 1)
    assert (experiment.spec.trainer.device, experiment.spec.run_policy.backoff_limit) == ("cpu", 0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("config.actor.lr=1", "override config.actor.lr=1: unknown key config.actor.lr; "
                              "did you mean config.actor.optimizer.lr?"),
        ("actor.path=x", "override actor.path=x: unknown key actor.path; did you mean config.actor.path?"),
        ("servers.maxReplica=2", "override servers.maxReplica=2: unknown key servers.maxReplica; "
                                 "did you mean servers.maxReplicas?"),
        ("servers.max_replicas=2", "override servers.max_replicas=2: unknown key servers.max_replicas; "
                                   "did you mean servers.maxReplicas?"),
        ("config.actor.optimizer.lr=-1", "spec.config.actor.optimizer.lr: -1 is below 0; give at least 0"),
        ("config.actor.optimizer.type=adamw", "spec.config.actor.optimizer.type: 'adamw' is not one of 'adam' or "
                                               "'sgd'; give one of them"),
        ("config.seed=x", "spec.config.seed: 'x' is not a whole number; give a whole number"),
        ("config.seed=1.5", "spec.config.seed: 1.5 is not a whole number; give a whole number"),
        ("config.async_training=maybe", "spec.config.async_training: 'maybe' is not true or false; give true or false"),
        ("config.actor.path=null", "spec.config.actor.path: null is not text; give text"),
        ("config.gconfig=3", "spec.config.gconfig: 3 is not a section (keys and values); "
                             "give a section (keys and values)"),
        ("config.seed=${no.such}", "seed: ${no.such} refers to a key that is not set; set it, or write the value out"),
        ("config.actor.path=???", "actor.path is ???; set it"),
        ("noequals", "override noequals: is not key=value; write for example actor.path=Qwen/Qwen3-1.7B"),
        ("--port=3", "override --port=3: is not key=value; write for example actor.path=Qwen/Qwen3-1.7B"),
        ("config..path=3", "override config..path=3: the key has an empty part; write for example "
                           "actor.optimizer.lr=1e-5"),
        ("config.gconfig.stop=[1", "override config.gconfig.stop=[1: the value is not YAML (while parsing a flow "
                                   "sequence); quote it"),
        ("config.seed=true", "spec.config.seed: 'true' is not a whole number; give a whole number"),
        ("config.actor.optimizer.lr=inf", "spec.config.actor.optimizer.lr: 'inf' is not a finite number; give a finite "
                                          "number"),
        ("config.trial_name=", "spec.config.trial_name: '' is shorter than 1 characters"),
        ("servers.replicas.x=1", "override servers.replicas.x=1: unknown key servers.replicas.x; "
                                 "did you mean servers.replicas?"),
    ],
)  # fmt: skip
def test_an_override_that_is_wrong_says_what_to_write(experiment: Path, override: str, message: str) -> None:
    assert error_of(experiment, override) == message


def test_all_problems_of_a_file_are_named_at_once(bare: Path) -> None:
    text = error_of(bare, "gconfig.n_samples=0", "gconfig.top_p=2", "trial_name=a/b")
    assert "3 problems" in text
    assert "\n  gconfig.n_samples: 0 is below 1; give at least 1" in text
    assert "\n  gconfig.top_p: 2 is above 1; give at most 1" in text
    assert "\n  trial_name: 'a/b' does not match" in text


def test_an_unknown_key_in_a_file_is_named(bare: Path) -> None:
    bare.write_text(BARE + "gconfig: {n_sampels: 3}\nsglang: {page_size: 3}\n")
    text = error_of(bare)
    assert "gconfig.n_sampels: unknown key; did you mean gconfig.n_samples?" in text
    assert "in servers.args, or as +sglang.KEY=VALUE" in text


def test_an_unknown_key_in_an_experiment_is_named(experiment: Path) -> None:
    experiment.write_text(EXPERIMENT + "  storage: {siz: 3Gi}\n")
    assert error_of(experiment) == "spec.storage.siz: unknown key; did you mean spec.storage.size?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "line 2: not valid YAML: did not find expected ',' or ']'"),
        ("a: 1\na: 2\n", "line 2: not valid YAML: found duplicate key a"),
        ("", "has no keys; pass an experiment or configuration file"),
        ("- 1\n", "has no keys; pass an experiment or configuration file"),
        ("kind: GRPOExperiment\n", "spec.config is missing; put the configuration there"),
        ("spec: {config: {a: 1}}\n", "metadata is missing; set metadata.name"),
        ("actor: {path: x}\n", "experiment_name is missing; set it"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert error_of(path) == message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert error_of(tmp_path / "no.yaml") == "no such file; pass the path of an experiment or configuration file"


def test_another_kind_of_object_is_refused(experiment: Path) -> None:
    experiment.write_text(EXPERIMENT.replace("kind: GRPOExperiment", "kind: Job"))
    assert error_of(experiment) == "kind: 'Job' is not one of 'GRPOExperiment'; give one of them"


def test_a_script_reads_the_same_configuration(experiment: Path) -> None:
    config, path = load_expr_config(["train.py", "--config", str(experiment), "config.seed=5"], GRPOConfig)
    assert path == str(experiment)
    assert config == load_experiment(experiment, ["config.seed=5"]).spec.config


def test_a_script_takes_areals_overrides(bare: Path) -> None:
    config, _ = load_expr_config([f"--config={bare}", "seed=5", "actor.path=other"], GRPOConfig)
    assert (config.experiment_name, config.seed, config.actor.path) == ("bare", 5, "other")


def test_a_launched_script_finds_its_configuration(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(names.CONFIG, str(bare))
    assert load_expr_config([], GRPOConfig)[1] == str(bare)


def test_paths_below_home_are_expanded_where_the_run_reads_them(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    overrides = ["actor.path=~/m", "cluster.fileroot=~/runs", "tokenizer_path=~/t", "valid_dataset.path=~/v"]
    experiment = load_experiment(bare, overrides)
    assert experiment.spec.config.actor.path == "~/m"  # pods have another home
    config = with_home_expanded(experiment).spec.config
    assert config == load_expr_config(["--config", str(bare), *overrides], GRPOConfig)[0]
    assert (config.actor.path, config.tokenizer_path) == (f"{tmp_path}/m", f"{tmp_path}/t")
    assert config.valid_dataset is not None
    assert config.valid_dataset.path == f"{tmp_path}/v"
    assert names.run_dir(config) == tmp_path / "runs" / "bare" / "trial0"


def test_trainer_and_server_read_the_resolved_configuration_alike(bare: Path, tmp_path: Path) -> None:
    config = load_experiment(bare, ["gconfig.stop=['\\${x}', a]"]).spec.config
    assert config.gconfig.stop == ["${x}", "a"]
    path = tmp_path / "config.yaml"
    path.write_text(config_yaml(config))
    assert read_resolved_config(path, GRPOConfig) == config


def test_an_experiment_is_not_a_resolved_configuration(experiment: Path) -> None:
    with pytest.raises(ConfigError, match="is an experiment, not the resolved configuration of a run"):
        read_resolved_config(experiment, GRPOConfig)


def test_a_script_without_configuration_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(names.CONFIG, raising=False)
    with pytest.raises(ConfigError, match="pass --config FILE"):
        load_expr_config([], GRPOConfig)


def test_a_script_may_have_more_keys(bare: Path) -> None:
    class MyConfig(GRPOConfig):
        bonus: float = 0.0

    config, _ = load_expr_config(["--config", str(bare), "bonus=0.5"], MyConfig)
    assert config.bonus == 0.5


def test_an_object_of_the_api_server_is_an_experiment() -> None:
    data = {
        "apiVersion": "areal.dev/v1alpha1",
        "kind": "GRPOExperiment",
        "metadata": {"name": "a", "uid": "1", "generation": 2, "managedFields": [{}]},
        "spec": {
            "config": {
                "actor": {"path": "m", "ppo_n_minibatches": 1},
                "tokenizer_path": "${actor.path}",
                "train_dataset": {"path": "d"},
            }
        },
        "status": {"phase": "Running", "servers": {"ready": 1}, "ofALaterVersion": 1},
    }
    experiment = parse_experiment(data, source="default/a")
    assert experiment.spec.config.tokenizer_path == "m"
    assert experiment.status is not None
    assert experiment.status.servers.ready == 1


def test_an_object_of_the_api_server_cannot_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPERATOR_SECRET", "s3cret")
    data = Case("", {"spec.config.actor.path": "${oc.env:OPERATOR_SECRET}"}).experiment()
    with pytest.raises(ConfigError, match="not allowed here, only references to keys") as caught:
        parse_experiment(data, source="default/a")
    assert "s3cret" not in str(caught.value)


def test_areals_file_warns_of_what_has_no_meaning(bare: Path, caplog: pytest.LogCaptureFixture) -> None:
    bare.write_text(BARE + "allocation_mode: sglang:d1+fsdp:d1\nvllm: {model: x}\n")
    with caplog.at_level(logging.WARNING):
        load_experiment(bare)
    assert f"{bare}: vllm: the servers are SGLang" in caplog.messages
