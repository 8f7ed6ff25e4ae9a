"""The examples, commands and links in the documents work as written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from areal_api.config import GRPOConfig
from areal_api.evaluation_columns import EVALUATION_COLUMNS
from areal_api.experiment import GRPOExperiment
from areal_api.rollout_columns import COLUMNS, Column
from areal_trainer.rollout.workflow import RolloutWorkflow
from benchmarks.__main__ import NAMED, NAMES

ROOT = Path(__file__).parents[3]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(ROOT / "docs").glob("*.md"),
    ROOT / "helm" / "areal-gsm8k" / "README.md",
    *(ROOT / "examples").glob("*/README.md"),
]
NEEDED: dict[str, Any] = {
    "experiment_name": "docs",
    "actor": {"path": "model"},
    "train_dataset": {"path": "data.jsonl", "batch_size": 64},
}


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def merged(block: dict[str, Any]) -> dict[str, Any]:
    sections = {key: {**NEEDED.get(key, {}), **value} for key, value in block.items() if isinstance(value, dict)}
    return {**NEEDED, **block, **sections}


@pytest.mark.parametrize("text", blocks("docs/algorithms.md", "yaml") + blocks("docs/customize.md", "yaml"))
def test_a_configuration_in_the_documents_is_valid(text: str) -> None:
    data = yaml.safe_load(text)
    if "spec" in data:
        spec = {**data["spec"], "config": merged(data["spec"].get("config", {}))}
        GRPOExperiment.model_validate({"metadata": {"name": "docs"}, "spec": spec})
    else:
        GRPOConfig(**merged(data))


def test_the_experiment_in_the_readme_is_valid() -> None:
    (text,) = blocks("README.md", "yaml")
    experiment = yaml.safe_load(text)
    experiment["spec"]["config"]["experiment_name"] = "gsm8k"
    assert GRPOExperiment(**experiment).spec.trainer.ranks == 4


def test_the_code_in_customize_runs() -> None:
    namespace: dict[str, Any] = {}
    for text in blocks("docs/customize.md", "python"):
        exec(text, namespace)
    assert namespace["puzzles"]("train")[0] == {"question": "What is 100 + 100?", "answer": "200"}
    assert namespace["exact_match"]("2 + 2", " 4", [1], [2], answer="4", task_id="x") == 1.0
    assert issubclass(namespace["SecondTry"], RolloutWorkflow)


def test_every_file_that_a_document_links_to_exists() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_path_that_a_document_names_exists() -> None:
    made = {"runs", "build"}  # by commands that the documents show
    names = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    folders = "|".join(sorted(names - made))
    for document in DOCUMENTS:
        for path in re.findall(rf"(?<![\w./-])((?:{folders})/[\w./-]*\w/?)", document.read_text()):
            if path != "operator/__init__.py":  # CONTRIBUTING warns against it
                assert (ROOT / path).exists() or (document.parent / path).exists(), f"{document.name} names {path}"


def test_every_make_target_that_a_document_names_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        named = set(re.findall(r"(?:`|^|&& )make ([a-z0-9-]+)", document.read_text(), re.MULTILINE))
        assert named <= targets, f"{document.name} names {named - targets}"


def test_every_benchmark_that_a_document_names_exists() -> None:
    for document in DOCUMENTS:
        for name in re.findall(r"python -m benchmarks ([a-z]+)", document.read_text()):
            assert name in NAMES + NAMED, f"{document.name} names {name}"


def test_every_test_that_hazards_names_exists() -> None:
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)\(", path.read_text())
    }
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "hazards.md").read_text()))
    assert len(named) > 20
    assert named <= defined, f"missing: {sorted(named - defined)}"


@pytest.mark.parametrize(
    ("columns", "document"), [(COLUMNS, "docs/rollouts.md"), (EVALUATION_COLUMNS, "docs/evaluation.md")]
)
def test_the_columns_of_samples_are_documented(columns: Sequence[Column], document: str) -> None:
    rows = [f"| `{column.name}` | {column.type} | {column.meaning} |" for column in columns]
    assert "\n".join(rows) in (ROOT / document).read_text()
