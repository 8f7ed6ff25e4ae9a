"""The examples, commands and links in the documents work as written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from areal_api.config import GRPOConfig
from areal_api.experiment import GRPOExperiment
from areal_trainer.rollout.workflow import RolloutWorkflow

ROOT = Path(__file__).parents[3]
NEEDED: dict[str, Any] = {
    "experiment_name": "docs",
    "actor": {"path": "model"},
    "train_dataset": {"path": "data.jsonl", "batch_size": 64},
}


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def merged(block: dict[str, Any]) -> dict[str, Any]:
    return {**NEEDED, **{key: {**NEEDED.get(key, {}), **value} for key, value in block.items()}}


@pytest.mark.parametrize("text", blocks("docs/algorithms.md", "yaml") + blocks("docs/customize.md", "yaml"))
def test_a_configuration_in_the_documents_is_valid(text: str) -> None:
    GRPOConfig(**merged(yaml.safe_load(text)))


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
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name} links to {target}"
