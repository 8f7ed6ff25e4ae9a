"""Changes with which a trainer fits."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_api.experiment import ExperimentSpec
from areal_api.sizing.families import FAMILIES
from areal_api.sizing.fixes import largest_that_fits, trainer_fix
from areal_api.sizing.gpus import GPUS, Gpu
from areal_api.sizing.model_shape import ModelShape
from areal_api.sizing.report import Surroundings, size_up
from benchmarks.memory import qwen25

BOOL = st.booleans()
TOO_LARGE = ("the trainer needs", "a server has")


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        (20_000, 10_000),  # everything fits
        (5_000, 4_096),  # rounded down to a multiple of 1,024
        (1_100, 1_050),  # rounding would go below the least
    ],
)
def test_the_largest_number_is_found_and_rounded(bound: int, expected: int) -> None:
    assert largest_that_fits(lambda n: n <= bound, 1_050, 10_000) == expected


def test_sequences_that_a_microbatch_cannot_be_split_below_are_divided_over_ranks() -> None:
    shape = ModelShape.of_config(qwen25("Qwen2.5-32B"))
    spec = ExperimentSpec.model_validate(
        {
            "config": {
                "experiment_name": "e",
                "actor": {"path": "m", "mb_spec": {"max_tokens_per_mb": 131_072}},
                "train_dataset": {"path": "d", "batch_size": 64},
                "gconfig": {"max_new_tokens": 131_072, "max_tokens": 131_072},
            },
            "trainer": {"nodes": 4, "processesPerNode": 8},
        }
    )
    fix = trainer_fix(spec, shape, GPUS["H100-80GB"])
    assert fix == "set config.actor.parallel.context=4"  # 2 would need 91 GiB


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    """A config.json of any family whose sizes are known."""
    heads = draw(st.sampled_from([4, 12, 28, 32, 40, 64]))
    head_dim = draw(st.sampled_from([64, 128]))
    hidden = heads * head_dim
    config = {
        "model_type": draw(st.sampled_from(sorted(FAMILIES))),
        "hidden_size": hidden,
        "intermediate_size": hidden * draw(st.integers(1, 8)),
        "num_hidden_layers": draw(st.integers(1, 96)),
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0])),
        "head_dim": head_dim,
        "vocab_size": draw(st.sampled_from([512, 32_000, 151_936, 512_000])),
        "tie_word_embeddings": draw(BOOL),
    }
    if draw(st.integers(0, 3)) == 0:
        config |= {"num_experts": draw(st.sampled_from([4, 64, 128])), "moe_intermediate_size": 768}
    return config


@st.composite
def experiments(draw: st.DrawFn) -> dict[str, Any]:
    """The specification of a valid experiment on GPUs."""
    nodes, per_node = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 4, 8]))
    ranks = nodes * per_node
    tensor, context = draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 4)]))
    tensor, context = (1, 1) if ranks % (tensor * context) else (tensor, context)
    shares = ranks // (tensor * context)
    copies = [n for n in (1, 2, nodes) if ranks // tensor % n == 0]
    actor = {
        "path": "m",
        "dtype": draw(st.sampled_from(["bfloat16", "float32"])),
        "attn_impl": draw(st.sampled_from([None, "sdpa", "eager"])),
        **draw(
            st.sampled_from(
                [
                    {},
                    {"gradient_checkpointing": True},
                    {"gradient_checkpointing": False},
                    {"checkpoint_every": 2},
                    {"offload_activations": True},
                ]
            )
        ),
        "mb_spec": {
            "max_tokens_per_mb": draw(st.sampled_from([None, 16_384, 131_072])),
            "n_mbs": draw(st.integers(1, 4)),
        },
        "parallel": {"tensor": tensor, "context": context},
        "fsdp": {
            "replicas": draw(st.sampled_from([None, *copies])),
            "offload_params": draw(st.integers(0, 9)) == 0,
            "reshard_after_forward": draw(BOOL),
        },
        "kl_ctl": draw(st.sampled_from([0.0, 0.1])),
        "optimizer": draw(st.sampled_from([{}, {"type": "sgd"}, {"state_dtype": "bfloat16", "beta2": 0.95}])),
        "lora": draw(st.sampled_from([None, None, {"rank": 32}])),
        "ppo_n_minibatches": draw(st.integers(1, 2)),
    }
    return {
        "config": {
            "experiment_name": "e",
            "actor": actor,
            "train_dataset": {
                "path": "d",
                "batch_size": shares * draw(st.sampled_from([2, 8, 64])),
                "max_length": 1024,
            },
            "gconfig": {"n_samples": 4, "max_new_tokens": draw(st.sampled_from([1024, 15_360]))},
        },
        "servers": {"device": "cuda", "tensorParallel": draw(st.sampled_from([1, 2, 4, 8]))},
        "trainer": {"device": "cuda", "nodes": nodes, "processesPerNode": per_node},
    }


def with_fix(experiment: dict[str, Any], fix: str) -> list[dict[str, Any]]:
    """``experiment`` with the keys that ``fix`` sets and the number of ranks that it names, on each number of nodes."""
    changed = copy.deepcopy(experiment)
    for key, value in re.findall(r"([\w.]+)=(\w+)", fix):
        *sections, last = key.split(".")
        section = changed
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = json.loads(value)
    if (found := re.search(r"use (\d+) ranks", fix)) is None:
        return [changed]
    ranks = int(found[1])
    most = 64  # ranks of a node
    layouts = [(n, ranks // n) for n in range(1, ranks + 1) if ranks % n == 0 and ranks // n <= most]
    return [changed | {"trainer": {"device": "cuda", "nodes": n, "processesPerNode": m}} for n, m in layouts]


@settings(max_examples=150)
@given(models(), experiments(), st.sampled_from(list(GPUS.values())))
def test_with_the_fix_that_is_named_the_experiment_fits(
    config: dict[str, Any], experiment: dict[str, Any], gpu: Gpu
) -> None:
    model, spec = ModelShape.of_config(config), ExperimentSpec.model_validate(experiment)
    for problem in size_up(spec, model, Surroundings(gpu=gpu)).problems:
        start = next((start for start in TOO_LARGE if problem.startswith(start)), None)
        fix = problem.rsplit("; ", 1)[1]
        if start is None or fix.startswith(("shorten", "lower")):
            continue
        assert fix.startswith(("set ", "use "))
        for changed in with_fix(experiment, fix):
            left = size_up(ExperimentSpec.model_validate(changed), model, Surroundings(gpu=gpu)).problems
            assert not [other for other in left if other.startswith(start)], (problem, changed["trainer"])
