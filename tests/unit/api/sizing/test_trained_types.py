"""The types of models that the trainer refuses or pads, as hack/families.py found them."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from areal_api.sizing.families import FAMILIES
from areal_api.sizing.trained_types import reason_for, trained_types, training_problem
from hack.families import OUTPUT, document


def test_the_document_has_the_content_of_the_file() -> None:
    assert OUTPUT.read_text() == document(trained_types())


def test_the_file_is_of_the_version_of_transformers_that_is_installed() -> None:
    assert trained_types()["transformers"] == version("transformers")


def test_every_type_has_one_entry() -> None:
    found = trained_types()
    kinds = [*found["packed"], *found["unbuilt"]]
    kinds += [kind for how in ("padded", "refused") for listed in found[how].values() for kind in listed]
    assert len(kinds) == len(set(kinds))
    assert FAMILIES.keys() <= set(kinds)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "gemma3_text", "gpt2", "my_model"])
def test_an_ordinary_type_and_one_that_is_not_listed_have_no_problem(kind: str) -> None:
    assert training_problem(kind, attn_impl=None, logit_changes=()) is None


def test_a_type_whose_default_changes_the_logits_is_refused_unless_the_model_does_not() -> None:
    assert reason_for("gemma2", "refused") == "final_logit_softcapping, which the trainer does not compute"
    assert "final_logit_softcapping" in str(training_problem("gemma2", attn_impl=None))
    assert training_problem("gemma2", attn_impl=None, logit_changes=()) is None
