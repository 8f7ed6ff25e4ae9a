"""What `grpo run` sees of an experiment before it starts anything."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from areal_api.experiment import ExperimentSpec
from areal_api.sizing.gpus import gpu_named
from areal_api.sizing.model_shape import ModelShape
from areal_api.sizing.report import Report, UnknownModel
from areal_launcher.fit import fit_in_cluster, fit_in_jobs, free_bytes, gpu_in_jobs, local_model, require_fit
from benchmarks.memory import qwen25


def report(*problems: str) -> Report:
    return Report(problems, ("useless",), ("unknown",), 1, None, None, None)


def test_every_problem_of_an_experiment_is_in_the_refusal() -> None:
    with pytest.raises(ValueError, match=r"(?s)does not fit.*first.*second.*--force"):
        require_fit(report("first", "second"), force=False, notify=lambda text: None)


def test_force_runs_and_says_so() -> None:
    said: list[str] = []
    require_fit(report("first"), force=True, notify=said.append)
    assert said == ["warning: useless", "not checked: unknown", "--force: running although first"]


def test_a_local_model_is_read_from_its_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(qwen25("Qwen2.5-7B")))
    assert isinstance(local_model(str(tmp_path)), ModelShape)


def test_a_config_json_that_is_not_a_models_is_refused_and_one_without_sizes_is_unknown(tmp_path: Path) -> None:
    for changes in ({"hidden_size": -1}, {"num_hidden_layers": 2**60}, {"vocab_size": "many"}):
        (tmp_path / "config.json").write_text(json.dumps({**qwen25("Qwen2.5-7B"), **changes}))
        with pytest.raises(ValueError, match=rf"config\.json: {next(iter(changes))} is"):
            local_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama", "d_model": 64}')
    unknown = local_model(str(tmp_path))
    assert isinstance(unknown, UnknownModel)
    assert "hidden_size is missing" in unknown.reason
    elsewhere = local_model("/models/on/the/volume")
    assert isinstance(elsewhere, UnknownModel)
    assert "is not on this machine" in elsewhere.reason


def test_a_hub_model_that_is_not_here_is_known_or_unknown_without_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.getaddrinfo", no_network)
    assert isinstance(local_model("Qwen/Qwen2.5-72B"), ModelShape)
    unknown = local_model("nobody/nothing-9d1")
    assert isinstance(unknown, UnknownModel)
    assert "not in this machine's cache" in unknown.reason


def test_what_the_run_itself_wrote_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    run = tmp_path / "not" / "yet" / "there"
    assert free_bytes(run) == 1000
    (run / "recover" / "step1").mkdir(parents=True)
    (run / "recover" / "step1" / "state").write_bytes(bytes(234))
    assert free_bytes(run) == 1234


def test_storage_size_counts_in_kubernetes_and_the_shared_disk_in_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(qwen25("Qwen2.5-7B")))
    config = {
        "experiment_name": "e",
        "actor": {"path": str(tmp_path), "ppo_n_minibatches": 1, "mb_spec": {"max_tokens_per_mb": 32768}},
        "train_dataset": {"path": "d"},
    }
    spec = ExperimentSpec.model_validate({"config": config, "storage": {"size": "1Gi"}})
    monkeypatch.setattr("areal_launcher.fit.free_bytes", lambda run: 2**44)
    assert [problem[:19] for problem in fit_in_cluster(spec).problems] == ["storage.size is 1Gi"]
    assert fit_in_jobs(spec).problems == ()
    small = fit_in_jobs(spec, gpu=gpu_named("L4-24GB"))
    assert any("L4-24GB" in problem for problem in small.problems), small.problems


def test_the_gpus_of_a_cluster_are_named_by_the_option_else_by_the_node_selector() -> None:
    config = {"experiment_name": "e", "actor": {"path": "m"}, "train_dataset": {"path": "d", "batch_size": 4}}
    selector = {"nvidia.com/gpu.product": "NVIDIA-L4"}
    spec = ExperimentSpec.model_validate({"config": config, "trainer": {"nodeSelector": selector}})
    assert gpu_in_jobs(spec, "H100-80GB") == gpu_named("H100-80GB")
    assert gpu_in_jobs(spec, None) == gpu_named("L4-24GB")
    with pytest.raises(ValueError, match="--gpu is 'H900'"):
        gpu_in_jobs(spec, "H900")
    on_cpu = {"servers": {"device": "cpu"}, "trainer": {"device": "cpu"}}
    assert gpu_in_jobs(ExperimentSpec.model_validate({"config": config, **on_cpu}), "H100-80GB") is None
