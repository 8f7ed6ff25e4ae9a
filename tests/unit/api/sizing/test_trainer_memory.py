"""Memory of a trainer GPU, against peaks of simulated steps (`python -m benchmarks memory` simulates them again)."""

from __future__ import annotations

from typing import Any

import pytest

from areal_api.actor import FSDPConfig, LoRAConfig, OptimizerConfig, PPOActorConfig, TrainEngineConfig
from areal_api.sizing.model_shape import ModelShape
from areal_api.sizing.trainer_memory import trainer_memory
from benchmarks.memory import qwen25

GB = 1e9
# Model, layers (None: all), ranks, tokens, checkpointing, simulated peak in GB.
SIMULATED = [
    ("Qwen2.5-7B", None, 8, 32_768, True, 37.20),
    ("Qwen2.5-7B", 3, 8, 16_384, True, 14.26),
    ("Qwen2.5-7B", 3, 8, 16_384, False, 21.92),
    ("Qwen2.5-1.5B", 3, 8, 16_384, True, 4.58),
    ("Qwen2.5-1.5B", 3, 1, 8_192, False, 11.07),
    ("Qwen2.5-32B", 3, 8, 16_384, True, 22.76),
    ("Qwen2.5-1.5B", None, 2, 16_384, True, 17.44),
    ("Qwen2.5-1.5B", None, 16, 2_048, True, 4.18),
    ("Qwen2.5-1.5B", None, 16, 2_048, False, 10.12),
    ("Qwen2.5-7B", None, 1, 4_096, False, 154.52),
    ("Qwen2.5-1.5B", None, 4, 16_384, True, 11.26),
    ("Qwen2.5-7B", None, 1, 16_384, True, 135.00),
    ("Qwen2.5-7B", None, 4, 16_384, True, 44.08),
    ("Qwen2.5-7B", None, 16, 16_384, True, 21.23),
    ("Qwen2.5-32B", None, 8, 16_384, True, 92.48),
    ("Qwen2.5-32B", None, 16, 16_384, True, 59.72),
    ("Qwen2.5-1.5B", None, 1, 16_384, True, 29.69),
    ("Qwen2.5-1.5B", None, 8, 16_384, True, 8.17),
    ("Qwen2.5-7B", None, 2, 16_384, True, 74.54),
    ("Qwen2.5-32B", None, 1, 16_384, True, 550.20),
    ("Qwen2.5-32B", None, 2, 16_384, True, 289.06),
    ("Qwen2.5-32B", None, 4, 16_384, True, 158.01),
    # Sequences of 8,192 tokens.
    ("Qwen2.5-1.5B", None, 1, 8_192, False, 51.61),
    ("Qwen2.5-1.5B", None, 8, 32_768, False, 103.80),
    ("Qwen2.5-1.5B", None, 8, 32_768, True, 11.92),
    ("Qwen2.5-7B", None, 8, 8_192, False, 75.19),
    ("Qwen2.5-7B", None, 8, 32_768, False, 236.12),
    ("Qwen2.5-7B", None, 16, 8_192, True, 17.06),
    ("Qwen2.5-32B", None, 16, 8_192, False, 219.61),
]


def shape(name: str = "Qwen2.5-7B", layers: int | None = None) -> ModelShape:
    return ModelShape.of_config(qwen25(name, layers=layers))


# Two layers of Qwen3-30B-A3B on eight ranks, 16,384 tokens. Without checkpointing the experts count too high.
MIXTURE = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151_936,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(("checkpointing", "simulated_gb", "above"), [(True, 14.49, 0.03), (False, 15.62, 0.11)])
def test_the_peak_of_a_mixture_of_experts(checkpointing: bool, simulated_gb: float, above: float) -> None:
    config = PPOActorConfig(path=".", gradient_checkpointing=checkpointing)
    memory = trainer_memory(ModelShape.of_config(MIXTURE), config, ranks=8, tokens=16_384)
    assert 0.97 * simulated_gb <= memory.total / GB <= (1 + above) * simulated_gb


# Ranks that divide layers (tensor) and tokens (context) of a model of three layers on eight ranks.
DIVIDED = [(1, 2, True, 11.56), (2, 1, True, 13.39), (2, 2, False, 15.65)]


@pytest.mark.parametrize(("tensor", "context", "checkpointing", "simulated_gb"), DIVIDED)
def test_the_peak_of_ranks_that_divide_layers_and_tokens_is_within_3_percent(
    tensor: int, context: int, checkpointing: bool, simulated_gb: float
) -> None:
    parallel = {"tensor": tensor, "context": context}
    config = PPOActorConfig.model_validate({"path": ".", "gradient_checkpointing": checkpointing, "parallel": parallel})
    memory = trainer_memory(shape("Qwen2.5-7B", 3), config, ranks=8, tokens=16_384)
    assert memory.total / GB == pytest.approx(simulated_gb, rel=0.03)


@pytest.mark.parametrize(("name", "layers", "ranks", "tokens", "checkpointing", "simulated_gb"), SIMULATED)
def test_the_peak_is_within_3_percent_of_the_simulated_one(
    name: str, layers: int | None, ranks: int, tokens: int, checkpointing: bool, simulated_gb: float
) -> None:
    config = PPOActorConfig(path=".", gradient_checkpointing=checkpointing)
    memory = trainer_memory(shape(name, layers), config, ranks=ranks, tokens=tokens)
    assert memory.total / GB == pytest.approx(simulated_gb, rel=0.03)


# Layers of Qwen2.5-7B on eight ranks, keys of the section actor, simulated peak in GB; 16,384 tokens.
CHECKPOINTED: list[tuple[int, dict[str, Any], float]] = [
    (4, {"checkpoint_every": 2}, 18.82),
    (5, {"checkpoint_every": 2}, 22.00),
    (6, {"offload_activations": True}, 15.43),
]


@pytest.mark.parametrize(("layers", "keys", "simulated_gb"), CHECKPOINTED)
def test_the_peak_of_checkpointing_some_layers_or_offloading_is_within_4_percent(
    layers: int, keys: dict[str, Any], simulated_gb: float
) -> None:
    config = PPOActorConfig.model_validate({"path": ".", "gradient_checkpointing": True, **keys})
    memory = trainer_memory(shape("Qwen2.5-7B", layers), config, ranks=8, tokens=16_384)
    assert memory.total / GB == pytest.approx(simulated_gb, rel=0.04)


QWEN3_8B = {
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(("checkpointing", "simulated_gb"), [(True, 26.41), (False, 89.65)])
def test_norms_of_queries_and_keys_count(checkpointing: bool, simulated_gb: float) -> None:
    config = PPOActorConfig(path=".", gradient_checkpointing=checkpointing)
    memory = trainer_memory(ModelShape.of_config(QWEN3_8B), config, ranks=8, tokens=8192)
    assert memory.total / GB == pytest.approx(simulated_gb, rel=0.02)


SMALL = {
    "model_type": "qwen2",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 64_000,
    "tie_word_embeddings": False,
}
LARGE_VOCABULARY = {"vocab_size": 512_000, "hidden_size": 1024, "intermediate_size": 4096}
NARROW = {
    "vocab_size": 150_000,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
}
# Changes of SMALL, ranks, tokens, checkpointing, simulated peak in GB.
UNUSUAL: list[tuple[dict[str, Any], int, int, bool, float]] = [
    (LARGE_VOCABULARY, 1, 8192, True, 27.19),
    (LARGE_VOCABULARY, 8, 2048, True, 8.51),
    (LARGE_VOCABULARY, 1, 512, True, 27.19),
    ({"vocab_size": 256_000, "hidden_size": 1024, "tie_word_embeddings": True}, 8, 2048, False, 4.07),
    ({"tie_word_embeddings": True}, 1, 8192, True, 8.24),
    ({"num_key_value_heads": 1}, 8, 8192, False, 6.92),
    ({"num_attention_heads": 128, "num_key_value_heads": 128, "head_dim": 64}, 8, 8192, False, 9.78),
    (NARROW, 1, 8192, True, 2.58),
    (NARROW, 8, 8192, True, 1.45),
    (NARROW, 8, 8192, False, 1.89),
    ({"intermediate_size": 512}, 1, 8192, True, 7.43),
    *(
        (
            {"model_type": kind, "num_hidden_layers": 2, "tie_word_embeddings": tied, "head_dim": 128},
            8,
            16384,
            False,
            simulated,
        )
        for kind, tied, simulated in (
            ("apertus", False, 8.13),
            ("exaone4", False, 7.42),
            ("gemma", True, 6.73),
            ("gemma3_text", True, 8.47),
            ("glm4", False, 7.72),
            ("mistral", False, 6.91),
            ("olmo2", False, 7.93),
            ("phi3", False, 6.91),
            ("starcoder2", True, 4.55),
        )
    ),
]


@pytest.mark.parametrize(("changes", "ranks", "tokens", "checkpointing", "simulated_gb"), UNUSUAL)
def test_the_peak_of_unusual_models_is_within_3_percent_of_the_simulated_one(
    changes: dict[str, Any], ranks: int, tokens: int, checkpointing: bool, simulated_gb: float
) -> None:
    config = PPOActorConfig(path=".", gradient_checkpointing=checkpointing)
    memory = trainer_memory(ModelShape.of_config({**SMALL, **changes}), config, ranks=ranks, tokens=tokens)
    assert memory.total / GB == pytest.approx(simulated_gb, rel=0.03)


# Three layers like those of GPT-2, whose MLP has two matrices: changes of SMALL, ranks, tokens, checkpointing,
# simulated peak in GB. Sequences have 2,048 tokens on eight ranks and 8,192 on one.
LIKE_GPT2: list[tuple[dict[str, Any], int, int, bool, float]] = [
    ({"model_type": "starcoder2", "tie_word_embeddings": True}, 8, 16_384, True, 2.89),
    ({"model_type": "gpt_neox", "num_key_value_heads": None}, 8, 16_384, True, 3.53),
    *(
        (
            {
                "model_type": "gpt_bigcode",
                "vocab_size": 49_152,
                "multi_query": one,
                "num_key_value_heads": None,
                "tie_word_embeddings": True,
            },
            *step,
        )
        for one, step in (
            (True, (8, 16_384, True, 2.79)),
            (True, (1, 8_192, True, 5.76)),
            (True, (8, 16_384, False, 5.47)),
            (True, (1, 8_192, False, 7.19)),
            (False, (8, 16_384, True, 3.02)),
            (False, (1, 8_192, True, 6.14)),
            (False, (8, 16_384, False, 5.91)),
            (False, (1, 8_192, False, 7.75)),
        )
    ),
]


@pytest.mark.parametrize(("changes", "ranks", "tokens", "checkpointing", "simulated_gb"), LIKE_GPT2)
def test_the_peak_of_models_like_gpt_2_is_within_5_percent_of_the_simulated_one(
    changes: dict[str, Any], ranks: int, tokens: int, checkpointing: bool, simulated_gb: float
) -> None:
    config = PPOActorConfig(path=".", gradient_checkpointing=checkpointing)
    shape = ModelShape.of_config({**SMALL, "num_hidden_layers": 3, "max_position_embeddings": 8192, **changes})
    memory = trainer_memory(shape, config, ranks=ranks, tokens=tokens)
    assert memory.total / GB == pytest.approx(simulated_gb, rel=0.05)


ADAPTERS = [
    ("Qwen2.5-1.5B", 3, 1, 8_192, True, 2.65),
    ("Qwen2.5-7B", 3, 8, 16_384, True, 9.13),
    ("Qwen2.5-7B", 3, 8, 16_384, False, 15.47),
    ("Qwen2.5-1.5B", None, 2, 4_096, True, 3.90),
]


@pytest.mark.parametrize(("name", "layers", "ranks", "tokens", "checkpointing", "simulated_gb"), ADAPTERS)
def test_the_peak_with_adapters_is_within_7_percent_of_the_simulated_one(
    name: str, layers: int | None, ranks: int, tokens: int, checkpointing: bool, simulated_gb: float
) -> None:
    lora = LoRAConfig(rank=32)
    config = PPOActorConfig(path=".", gradient_checkpointing=checkpointing, lora=lora)
    memory = trainer_memory(shape(name, layers), config, ranks=ranks, tokens=tokens)
    assert memory.total / GB == pytest.approx(simulated_gb, rel=0.07)


def test_the_total_is_the_sum_of_the_parts() -> None:
    memory = trainer_memory(shape(), PPOActorConfig(path="."), ranks=4, tokens=1000)
    assert memory.total == sum(memory.by_part().values())


def test_sharded_parts_shrink_with_the_ranks_and_no_other_part_does() -> None:
    one, eight = (trainer_memory(shape(), PPOActorConfig(path="."), ranks=n, tokens=32768).by_part() for n in (1, 8))
    shrunk = {name for name in one if eight[name] < one[name]}
    assert shrunk == {"parameters", "gradients", "optimizer"}
    assert one["parameters"] == pytest.approx(8 * eight["parameters"], rel=1e-6)


def test_offloading_leaves_no_sharded_part_on_the_gpu() -> None:
    config = PPOActorConfig(path=".", fsdp=FSDPConfig(offload_params=True))
    memory = trainer_memory(shape(), config, ranks=1, tokens=1000)
    assert (memory.parameters, memory.gradients, memory.optimizer) == (0, 0, 0)


@pytest.mark.parametrize(
    ("optimizer", "bytes_per_parameter"),
    [({}, 8), ({"state_dtype": "bfloat16", "beta2": 0.95}, 4), ({"offload": True}, 0)],
)
def test_moments_count_in_their_type_and_not_in_host_memory(
    optimizer: dict[str, Any], bytes_per_parameter: int
) -> None:
    config = PPOActorConfig.model_validate({"path": ".", "optimizer": optimizer})
    memory = trainer_memory(shape(), config, ranks=1, tokens=1000)
    assert memory.optimizer == bytes_per_parameter * shape().parameters
    assert memory.parameters == memory.gradients == 4 * shape().parameters


def test_sgd_has_no_moments_and_a_kl_penalty_adds_a_reference_model() -> None:
    sgd = PPOActorConfig(path=".", optimizer=OptimizerConfig(type="sgd"))
    assert trainer_memory(shape(), sgd, ranks=1, tokens=10).optimizer == 0
    penalised = trainer_memory(shape(), PPOActorConfig(path=".", kl_ctl=0.1), ranks=2, tokens=10)
    assert penalised.reference == penalised.parameters


@pytest.mark.parametrize(
    ("fsdp", "copies"), [({}, 1 / 4), ({"offload_params": True}, 0), ({"replicas": 1}, 1 / 4), ({"replicas": 4}, 1)]
)
def test_the_reference_model_has_settings_of_its_own(fsdp: dict[str, Any], copies: float) -> None:
    config, ref = PPOActorConfig(path=".", kl_ctl=0.1), TrainEngineConfig.model_validate({"path": ".", "fsdp": fsdp})
    memory = trainer_memory(shape(), config, ranks=4, tokens=10, ref=ref)
    assert memory.reference == pytest.approx(4 * shape().parameters * copies, rel=1e-6)
    assert memory.parameters == pytest.approx(shape().parameters, rel=1e-6)


def test_resharding_bounds_the_gathered_layers() -> None:
    kept = PPOActorConfig(path=".", fsdp=FSDPConfig(reshard_after_forward=False))
    freed = trainer_memory(shape(), PPOActorConfig(path="."), ranks=8, tokens=10).gathered
    assert trainer_memory(shape(), kept, ranks=8, tokens=10).gathered > 2 * freed
