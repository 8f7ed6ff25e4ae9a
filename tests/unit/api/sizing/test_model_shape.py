"""Sizes of published models from their config.json; the numbers of parameters are those of their model cards' files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_api.sizing.model_shape import MAX_CONFIG_BYTES, MissingSizeError, ModelShape

QWEN25_7B: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
LLAMA3_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
QWEN3_30B_A3B = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(QWEN25_7B, 7_615_616_512), (LLAMA3_8B, 8_030_261_248), (QWEN3_30B_A3B, 30_532_122_624)],
    ids=["Qwen2.5-7B", "Llama-3-8B", "Qwen3-30B-A3B"],
)
def test_the_parameters_of_a_published_model_are_exact(config: dict[str, Any], parameters: int) -> None:
    assert ModelShape.of_config(config).parameters == parameters


def test_a_tied_embedding_counts_once() -> None:
    tied = ModelShape.of_config({**QWEN25_7B, "tie_word_embeddings": True})
    assert ModelShape.of_config(QWEN25_7B).parameters - tied.parameters == 152064 * 3584


def test_the_sizes_of_a_composite_model_are_those_of_its_text_model() -> None:
    assert ModelShape.of_config({"model_type": "gemma3", "text_config": QWEN25_7B}).layers == 28


@pytest.mark.parametrize(
    "value", ["3584", 0, -1, True, -(2**600), 3.5, float("nan"), [1] * 10**6, {"a": 1}, "x" * 10**6]
)
def test_a_wrong_size_is_refused_with_its_key_and_value(value: object) -> None:
    with pytest.raises(ValueError, match=r"hidden_size is .*not a positive integer") as error:
        ModelShape.of_config({**QWEN25_7B, "hidden_size": value})
    assert len(str(error.value)) < 200


SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "head_dim")


@pytest.mark.parametrize("value", [2**40 - 1, 2**600, 10**6000], ids=["40 bits", "600 bits", "6000 digits"])
@pytest.mark.parametrize("key", SIZES)
def test_a_size_that_no_model_has_is_refused(key: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"{key} is .*which no model has; at most \d+ is accepted"):
        ModelShape.of_config({**QWEN25_7B, key: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_attention_heads": 4096, "hidden_size": 64, "num_key_value_heads": 1},
            "does not divide hidden_size 64, and head_dim is missing",
        ),
        ({"num_key_value_heads": 5}, "num_key_value_heads is 5, which does not divide num_attention_heads 28"),
        ({"num_key_value_heads": 56}, "num_key_value_heads is 56, which does not divide"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false', which is not true or false"),
        ({"attention_bias": 1}, "attention_bias is 1, which is not true or false"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelShape.of_config({**QWEN25_7B, **changes})


@pytest.mark.parametrize(
    "key",
    ["model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"],
)
def test_a_missing_size_is_named(key: str) -> None:
    with pytest.raises(MissingSizeError, match=f"{key} is missing"):
        ModelShape.of_config({name: value for name, value in QWEN25_7B.items() if name != key})


@pytest.mark.parametrize("kind", ["llava", "t5", "my_model", "x" * 1000])
def test_a_type_that_the_trainer_cannot_load_is_not_taken_for_llama(kind: str) -> None:
    with pytest.raises(MissingSizeError, match=r"model_type is .*, no causal language model of transformers") as error:
        ModelShape.of_config({"model_type": kind, "text_config": QWEN25_7B})
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("kind", ["mamba2", "bloom"])
def test_a_type_whose_sizes_are_unknown_is_not_taken_for_llama(kind: str) -> None:
    with pytest.raises(MissingSizeError, match=f"model_type is '{kind}', a type of model whose sizes") as error:
        ModelShape.of_config({**QWEN25_7B, "model_type": kind})
    assert error.value.kind == kind


@pytest.mark.parametrize("value", [7, True, ["qwen2"]])
def test_a_type_that_is_not_a_name_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"model_type is .*not a string"):
        ModelShape.of_config({**QWEN25_7B, "model_type": value})


@pytest.mark.parametrize(
    ("changes", "longest"),
    [
        ({}, None),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, None),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 4096}, 4096),
        ({"rope_scaling": {"rope_type": "longrope"}, "original_max_position_embeddings": 2048}, 2048),
        ({"rope_parameters": {"full": {"rope_type": "longrope", "original_max_position_embeddings": 512}}}, 512),
    ],
)
def test_the_length_from_which_rotary_embeddings_depend_on_the_pass_is_known(
    changes: dict[str, Any], longest: int | None
) -> None:
    assert ModelShape.of_config({**QWEN25_7B, **changes}).longest_packed == longest


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("granite", {"logits_scaling": 8.0}, ("logits_scaling",)),
        ("granite", {"logits_scaling": 1.0}, ()),
        ("llama", {"final_logit_softcapping": None}, ()),
        ("llama", {"final_logit_softcapping": 30.0}, ("final_logit_softcapping",)),
    ],
)
def test_keys_that_change_logits_are_known(kind: str, changes: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert ModelShape.of_config({**LLAMA3_8B, "model_type": kind, **changes}).logit_changes == expected


def test_a_directory_without_weights_is_enough(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN25_7B))
    assert ModelShape.of_directory(tmp_path).hidden == 3584


NOT_CONFIGURATIONS = [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"9" * 5000, b" " * (MAX_CONFIG_BYTES + 1)]


@pytest.mark.parametrize("content", NOT_CONFIGURATIONS, ids=range(len(NOT_CONFIGURATIONS)))
def test_a_file_that_is_no_configuration_is_refused_with_its_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        ModelShape.of_directory(tmp_path)


def test_a_file_that_never_ends_and_a_pipe_are_not_read_to_their_end(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="not a regular file"):
        ModelShape.of_directory(tmp_path)
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ValueError, match="not a regular file"):
        ModelShape.of_directory(tmp_path)


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]))


@given(st.dictionaries(st.sampled_from([*QWEN25_7B, "num_experts", "head_dim", "text_config", "rope_scaling"]), VALUES))
def test_any_configuration_gives_a_shape_or_a_value_error(config: dict[str, Any]) -> None:
    try:
        shape = ModelShape.of_config(config)
    except ValueError:
        return
    assert shape.parameters > 0
