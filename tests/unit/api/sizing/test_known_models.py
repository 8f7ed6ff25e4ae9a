"""Parameters of published models, from the index files of their repositories."""

from __future__ import annotations

import pytest

from areal_api.sizing.known_models import known_shape
from areal_api.sizing.model_shape import ModelShape
from benchmarks.memory import QWEN25, qwen25


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-7B", 7_615_616_512),
        ("Qwen/Qwen2.5-32B-Instruct", 32_763_876_352),
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-8B-Base", 8_190_735_360),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400),
        ("HuggingFaceTB/SmolLM2-135M", 134_515_008),
    ],
)
def test_the_parameters_of_a_known_model_are_exact(name: str, parameters: int) -> None:
    shape = known_shape(name)
    assert shape is not None
    assert shape.parameters == parameters


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-9B", "someone/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "7B"])
def test_an_unknown_name_is_not_guessed(name: str) -> None:
    assert known_shape(name) is None


@pytest.mark.parametrize("name", QWEN25)
def test_a_row_agrees_with_the_models_config(name: str) -> None:
    shape, config = known_shape(f"Qwen/{name}"), ModelShape.of_config(qwen25(name))
    assert shape is not None
    assert (shape.layer, shape.parameters) == (config.layer, config.parameters)
