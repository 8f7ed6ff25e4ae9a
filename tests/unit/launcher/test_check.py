"""`grpo check` on experiments whose model is a directory with a config.json and no weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from areal_launcher.check import parse_nodes
from areal_launcher.cli import main
from benchmarks.memory import qwen25

EXPERIMENT = """\
apiVersion: areal.dev/v1alpha1
kind: GRPOExperiment
metadata: {{name: sized}}
spec:
  config:
    gconfig: {{n_samples: 4, max_new_tokens: 1024}}
    actor: {{path: {model}, gradient_checkpointing: true, mb_spec: {{max_tokens_per_mb: 4096}}}}
    train_dataset: {{path: d, batch_size: 8, max_length: 1024}}
  servers: {{device: cuda}}
  trainer: {{device: cuda}}
  storage: {{size: 1Ti}}
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(qwen25("Qwen2.5-1.5B")))
    file = tmp_path / "experiment.yaml"
    file.write_text(EXPERIMENT.format(model=model))
    return file


def test_an_experiment_that_fits_ends_with_0(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(experiment), "--gpu", "H100-80GB", "--nodes", "8"]) == 0
    printed = capsys.readouterr().out
    assert "✓ the experiment fits" in printed
    assert "Compared with H100-80GB" in printed


def test_one_that_does_not_fit_ends_with_1_and_names_the_fix(
    experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(experiment), "storage.size=10Gi", "--gpu", "L4-24GB"]) == 1
    printed = capsys.readouterr().out
    assert "✗ the trainer needs" in printed
    assert "✗ storage.size is 10Gi" in printed


def test_json_is_the_report_alone(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(experiment), "--gpu", "H100-80GB", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["fits"] is True
    assert report["server"]["kv_tokens"] > 0


def test_the_resolved_configuration_is_an_experiment(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", str(experiment), "--gpu", "H100-80GB", "--print-config", "config.seed=7"])
    assert "seed: 7" in capsys.readouterr().out


def test_without_a_gpu_the_report_says_what_was_not_compared(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["check", str(experiment)]) == 0
    printed = capsys.readouterr().out
    assert "the GPU is unknown; name it with grpo check --gpu" in printed
    assert "✓ what could be checked fits" in printed


@pytest.mark.parametrize(("text", "nodes"), [("8", [8]), ("8,4", [8, 4]), ("2x8", [8, 8]), ("2x8,1", [8, 8, 1])])
def test_nodes_are_numbers_of_gpus(text: str, nodes: list[int]) -> None:
    assert parse_nodes(text) == nodes


@pytest.mark.parametrize("text", ["", "x", "8x", "-1", "8,,8", "9999999x8", "2x8x8", "1e9", "65", "9999x64", "٤"])
def test_other_nodes_are_refused_with_the_value(text: str) -> None:
    with pytest.raises(ValueError, match="--nodes"):
        parse_nodes(text)


def test_a_model_that_the_hub_does_not_have_names_the_fix(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["check", str(experiment), "config.actor.path=nobody/nothing-9d1"]) == 2
    error = capsys.readouterr().err
    assert "actor.path 'nobody/nothing-9d1' cannot be read from the hub" in error
    assert "its weights are not needed" in error


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        ("hello", 2, "config.json is not valid JSON"),
        ("[]", 2, "config.json must hold a JSON object, not list"),
        ("{}", 2, "config.json: model_type is missing"),
        ('{"model_type": "qwen2"}', 2, "config.json: hidden_size is missing"),
        ('{"model_type": "llava", "text_config": {"model_type": "llama"}}', 2, "no causal language model"),
        (
            json.dumps({**qwen25("Qwen2.5-7B"), "num_hidden_layers": 10**9}),
            2,
            "num_hidden_layers is 1000000000",
        ),
        (json.dumps({**qwen25("Qwen2.5-7B"), "num_attention_heads": 27}), 2, "does not divide"),
        ('{"model_type": "deepseek_v3"}', 1, "does not train this model of type deepseek_v3"),
        ('{"model_type": "bloom"}', 1, "set config.actor.attn_impl=eager"),
    ],
)
def test_a_model_that_cannot_be_sized_or_trained_gives_one_clear_error(
    experiment: Path, capsys: pytest.CaptureFixture[str], content: str, status: int, message: str
) -> None:
    (experiment.parent / "model" / "config.json").write_text(content)
    assert main(["check", str(experiment), "--gpu", "H100-80GB"]) == status
    printed = capsys.readouterr()
    assert message in (printed.err if status == 2 else printed.out)
    if status == 2:
        assert len(printed.err.splitlines()) == 1
