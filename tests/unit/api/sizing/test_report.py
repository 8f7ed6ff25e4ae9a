"""`grpo check`'s answer: every problem names its keys and the smallest change with which the run fits."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_api.experiment import ExperimentSpec
from areal_api.sizing.disk import LOGS_BYTES
from areal_api.sizing.gpus import GPUS, Gpu
from areal_api.sizing.lengths import LONGER_CONTEXT
from areal_api.sizing.model_shape import ModelShape
from areal_api.sizing.report import Report, Surroundings, UnknownModel, size_up
from benchmarks.memory import qwen25

H100 = GPUS["H100-80GB"]


def spec(**changes: Any) -> ExperimentSpec:
    config = {
        "experiment_name": "e",
        "actor": {"path": "m", "gradient_checkpointing": True, "mb_spec": {"max_tokens_per_mb": 10240}},
        "train_dataset": {"path": "d", "batch_size": 8, "max_length": 1024},
        "gconfig": {"n_samples": 4, "max_new_tokens": 1024},
    }
    config["actor"].update(changes.pop("actor", {}))  # type: ignore[attr-defined]
    config.update(changes.pop("config", {}))
    return ExperimentSpec.model_validate(
        {
            "config": config,
            "servers": {"device": "cuda", **changes.pop("servers", {})},
            "trainer": {"device": "cuda", **changes.pop("trainer", {})},
            "storage": {"size": "1Ti", **changes.pop("storage", {})},
        }
    )


def checked(experiment: ExperimentSpec, *, model: str = "Qwen2.5-1.5B", **where: Any) -> Report:
    return size_up(experiment, ModelShape.of_config(qwen25(model)), Surroundings(gpu=H100, **where))


PRODUCT = "nvidia.com/gpu.product"
POOLS = [
    {"name": "big", "tensorParallel": 2, "nodeSelector": {PRODUCT: "NVIDIA-H100-80GB-HBM3"}},
    {"name": "small", "nodeSelector": {PRODUCT: "NVIDIA-L4"}, "args": {"mem_fraction_static": 0.5}},
]


def test_each_pool_of_servers_is_compared_with_its_gpu() -> None:
    report = checked(spec(servers={"pools": POOLS}, trainer={"device": "cpu"}), model="Qwen2.5-7B")
    (problem,) = report.problems
    assert problem.startswith("a server of pool small has 14.2 GiB of weights per GPU")
    assert "on L4-24GB" in problem
    assert problem.endswith("set servers.pools[small].tensorParallel=2")
    assert report.server is not None
    assert report.pools["big"].weights_bytes == report.server.weights_bytes // 2
    assert report.pools["big"].kv_tokens > 2 * report.server.kv_tokens
    assert set(report.as_json()["pools"]) == {"big", "small"}


def test_a_pool_whose_gpu_is_unknown_is_not_checked() -> None:
    experiment = spec(servers={"pools": POOLS[:1]}, trainer={"device": "cpu"})
    shape = ModelShape.of_config(qwen25("Qwen2.5-1.5B"))
    assert "the GPU is unknown" in size_up(experiment, shape, Surroundings()).not_checked[0]
    named = spec(servers={"pools": POOLS[:1], "nodeSelector": {PRODUCT: "NVIDIA-L40S"}}, trainer={"device": "cpu"})
    assert size_up(named, shape, Surroundings()).not_checked == ()


def test_heads_that_a_pool_cannot_divide_are_named() -> None:
    report = checked(spec(servers={"pools": [{"name": "odd", "tensorParallel": 5}]}))
    assert "servers.pools[odd].tensorParallel is 5, which does not divide" in report.problems[0]


def test_a_run_that_fits_has_no_problem() -> None:
    report = checked(spec(), nodes=[8])
    assert report.fits
    assert report.problems == ()


def test_seven_billion_parameters_do_not_fit_one_gpu_and_the_fix_does() -> None:
    report = checked(spec(), model="Qwen2.5-7B")
    (problem,) = report.problems
    assert "the trainer needs" in problem
    assert "optimizer 56.7 GiB" in problem
    assert problem.endswith("use 2 ranks (trainer.nodes × trainer.processesPerNode)")
    assert checked(spec(trainer={"processesPerNode": 2}), model="Qwen2.5-7B").fits


@pytest.mark.parametrize(
    ("fsdp", "fix"),
    [
        ({"replicas": 8}, {"replicas": 4}),  # 7.6 G parameters on one GPU, or on two
        ({"replicas": 4, "reshard_after_forward": False}, {"replicas": 2}),
        ({"reshard_after_forward": False}, {"reshard_after_forward": True}),
    ],
)
def test_sharding_that_takes_less_memory_is_named_before_anything_else(
    fsdp: dict[str, Any], fix: dict[str, Any]
) -> None:
    tokens = 100_000 if "replicas" not in fsdp else 10_240
    sections = {"trainer": {"processesPerNode": 8}}
    actor = {"ppo_n_minibatches": 1, "mb_spec": {"max_tokens_per_mb": tokens}}
    report = checked(spec(actor={**actor, "fsdp": fsdp}, **sections), model="Qwen2.5-7B")
    ((key, value),) = fix.items()
    assert report.problems[0].endswith(f"set config.actor.fsdp.{key}={str(value).lower()}")
    assert checked(spec(actor={**actor, "fsdp": fsdp | fix}, **sections), model="Qwen2.5-7B").fits


def test_checkpointing_is_named_first_where_it_is_enough() -> None:
    report = checked(spec(actor={"gradient_checkpointing": False, "mb_spec": {"max_tokens_per_mb": 32768}}))
    assert report.problems[0].endswith("set config.actor.gradient_checkpointing=true")


def test_a_volume_that_is_too_small_is_named_with_the_size_that_is_enough() -> None:
    (problem,) = checked(spec(storage={"size": "50Gi"})).problems
    assert problem.startswith("storage.size is 50Gi")
    enough = problem.split("storage.size=")[1].split()[0]
    assert checked(spec(storage={"size": enough})).fits


def test_the_disk_of_this_machine_counts_where_it_is_known() -> None:
    (problem,) = checked(spec(storage={"size": "1Gi"}), free_disk_bytes=2**30).problems
    assert "the file system of cluster.fileroot has 1.0 GiB free" in problem


def test_a_trainer_pod_that_finds_no_node_is_named() -> None:
    (problem,) = checked(spec(trainer={"processesPerNode": 8}), nodes=[4, 4]).problems
    assert problem.startswith("no node has room for trainer-0 (8 GPUs): the nodes have 4, 4 GPUs free")


def test_a_volume_that_one_node_can_mount_keeps_all_pods_on_one_node() -> None:
    once = {
        "storage": {"accessModes": ["ReadWriteOnce"]},
        "servers": {"replicas": 4},
        "trainer": {"processesPerNode": 4},
    }
    assert checked(spec(**once), nodes=[4, 8]).fits
    (problem,) = checked(spec(**once), nodes=[4, 7]).problems
    assert problem.startswith(
        "no node has room for server-3 (1 GPUs): the nodes have 4, 7 GPUs free, and storage.access"
    )


def test_the_free_gpus_of_many_nodes_are_cut() -> None:
    (problem,) = checked(spec(trainer={"processesPerNode": 8}), nodes=[4] * 4096).problems
    assert "4, 4, … GPUs free" in problem
    assert len(problem) < 300


def test_a_sequence_for_which_the_rotary_embedding_depends_on_the_pass_is_refused() -> None:
    long_rope = {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 1500}
    model = ModelShape.of_config({**qwen25("Qwen2.5-1.5B"), **long_rope})
    (problem,) = size_up(spec(), model, Surroundings(gpu=H100)).problems
    assert "a sequence can have 2048 tokens" in problem
    assert problem.endswith("set config.gconfig.max_tokens=1500")
    shorter = {"gconfig": {"n_samples": 4, "max_new_tokens": 1024, "max_tokens": 1500}}
    assert size_up(spec(config=shorter), model, Surroundings(gpu=H100)).fits


@pytest.mark.parametrize(
    ("context", "name", "fits"), [(4096, "", True), (4097, "", False), (4097, LONGER_CONTEXT, True)]
)
def test_a_context_beyond_the_models_positions_is_refused_unless_sglang_allows_it(
    context: int, name: str, fits: bool
) -> None:
    model = ModelShape.of_config({**qwen25("Qwen2.5-1.5B"), "max_position_embeddings": 4096})
    env = [{"name": name, "value": "1"}] if name else []
    experiment = spec(config={"sglang": {"context_length": context}}, servers={"env": env})
    report = size_up(experiment, model, Surroundings(gpu=H100))
    assert report.fits is fits
    assert fits or report.problems[0].startswith(f"sglang.context_length is {context}, but the model was made for 4096")


def test_a_type_that_sglangs_kernels_do_not_take_is_a_warning() -> None:
    single = {"dtype": "float32"}
    (warning,) = checked(spec(config={"sglang": single})).warnings
    assert "config.sglang.attention_backend=triton" in warning
    assert checked(spec(config={"sglang": {**single, "attention_backend": "triton"}})).warnings == ()
    for servers in ({"args": {"attention-backend": "triton"}}, {"device": "cpu"}):
        assert checked(spec(config={"sglang": single}, servers=servers)).warnings == ()


def test_attention_that_keeps_its_weights_is_not_checked() -> None:
    (reason,) = checked(spec(actor={"attn_impl": "eager"})).not_checked
    assert "attn_impl eager keeps the attention weights" in reason
    assert checked(spec(actor={"attn_impl": "eager"}, trainer={"device": "cpu"})).not_checked == ()


@pytest.mark.parametrize(("path", "kl_ctl", "reasons"), [("other", 0.1, 1), ("m", 0.1, 0), ("other", 0.0, 0)])
def test_another_reference_model_is_counted_as_the_actor_and_named(path: str, kl_ctl: float, reasons: int) -> None:
    found = checked(spec(actor={"kl_ctl": kl_ctl}, config={"ref": {"path": path}})).not_checked
    assert len(found) == reasons
    assert all("reference model other" in reason for reason in found)


def test_a_type_that_is_refused_is_a_problem_also_if_its_sizes_are_unknown() -> None:
    report = size_up(spec(), UnknownModel("unknown sizes", "deepseek_v3"), Surroundings(gpu=H100))
    (problem,) = report.problems
    assert "does not train this model of type deepseek_v3" in problem


def test_a_sequence_longer_than_a_microbatch_is_refused_with_both_lengths() -> None:
    (problem,) = checked(spec(actor={"mb_spec": {"max_tokens_per_mb": 2000}})).problems
    assert "max_tokens_per_mb is 2000, but a sequence can have 2048 tokens" in problem
    assert "set config.actor.mb_spec.max_tokens_per_mb=2048" in problem


def test_prompts_or_turns_without_a_limit_are_a_warning_with_the_key_that_limits_them() -> None:
    unlimited = spec(config={"train_dataset": {"path": "d", "batch_size": 8}})
    turns = spec(config={"workflow": {"path": "my_agent:Agent"}})
    for experiment in (unlimited, turns):
        (warning,) = checked(experiment).warnings
        assert warning.endswith("set config.gconfig.max_tokens=10240")
    capped = spec(config={"workflow": {"path": "my_agent:Agent"}, "gconfig": {"n_samples": 4, "max_tokens": 10240}})
    assert checked(spec()).warnings == checked(capped).warnings == ()


# Longest prompt, new tokens, gconfig.max_tokens, tokens of a microbatch, context_length, the model's positions; what is
# refused (the key that the message starts with), or None.
LENGTHS = [
    (1024, 1024, 32768, 2048, None, 2048, None),
    (1024, 1025, 32768, 2048, None, 4096, "actor.mb_spec.max_tokens_per_mb is 2048"),
    (1024, 1025, 2048, 2048, None, 4096, None),  # max_tokens ends the sequence
    (1024, 1024, 32768, None, None, 4096, None),
    (1024, 1024, 32768, 2048, None, 2047, "a sequence can have 2048 tokens"),
    (1024, 1024, 32768, 2048, 2048, 2048, None),
    (1024, 1024, 32768, 2048, 2049, 2048, "sglang.context_length is 2049"),
    (0, 2048, 32768, 2048, None, 2048, None),  # prompts are unknown: only what is certain is refused
    (0, 2049, 32768, 2048, None, 4096, "actor.mb_spec.max_tokens_per_mb is 2048"),
    (8192, 24576, 32768, 32768, None, 32768, None),
    (8192, 24577, 32768, 32768, None, 32768, None),
    (8192, 24577, 40960, 32768, None, 40960, "actor.mb_spec.max_tokens_per_mb is 32768"),
]


@pytest.mark.parametrize(("prompt", "new", "most", "microbatch", "context", "positions", "expected"), LENGTHS)
def test_a_sequence_that_does_not_fit_is_refused_before_the_run(
    prompt: int, new: int, most: int, microbatch: int | None, context: int | None, positions: int, expected: str | None
) -> None:
    data = {"path": "d", "batch_size": 8, "max_length": prompt or None}
    config = {
        "train_dataset": data,
        "gconfig": {"n_samples": 4, "max_new_tokens": new, "max_tokens": most},
        "sglang": {"context_length": context},
    }
    model = ModelShape.of_config({**qwen25("Qwen2.5-1.5B"), "max_position_embeddings": positions})
    experiment = spec(config=config, actor={"mb_spec": {"max_tokens_per_mb": microbatch}})
    problems = size_up(experiment, model, Surroundings()).problems
    assert [problem for problem in problems if not problem.startswith(expected or "-")] == []
    assert bool(problems) is (expected is not None)


# Parameters of Qwen2.5-7B, 7.62 G: 6 bytes of published weights (2 by broadcast), 12 of each recovery checkpoint and of
# the one that is being written, 2 of each saved model and of the hub's copy.
P7 = 7_615_616_512
STORAGE = [
    ({}, False, 6 + 3 * 12 + 2),
    ({}, True, 6 + 3 * 12 + 2 + 2),
    ({"recover": {"mode": "disabled"}}, False, 6 + 2),
    ({"recover": {"keep": 1}}, False, 6 + 2 * 12 + 2),
    ({"saver": {"freq_epochs": 1}, "total_train_epochs": 3}, False, 6 + 3 * 12 + 4 * 2),
    ({"saver": {"freq_steps": 10}, "total_train_steps": 100}, False, 6 + 3 * 12 + 11 * 2),
]


@pytest.mark.parametrize(("config", "from_hub", "bytes_per_parameter"), STORAGE)
def test_a_volume_holds_all_that_a_run_writes(config: dict[str, Any], from_hub: bool, bytes_per_parameter: int) -> None:
    model = ModelShape.of_config(qwen25("Qwen2.5-7B"))
    needed = -(-(bytes_per_parameter * P7 + LOGS_BYTES) // 2**30)
    for size, fits in ((needed, True), (needed - 1, False)):
        experiment = spec(config=config, storage={"size": f"{size}Gi"})
        report = size_up(experiment, model, Surroundings(from_hub=from_hub))
        assert report.fits is fits
        assert fits or report.problems[0].startswith(f"storage.size is {size}Gi, but the run needs")


def test_a_server_without_room_for_one_sequence_is_named() -> None:
    report = size_up(
        spec(trainer={"device": "cpu"}),
        ModelShape.of_config(qwen25("Qwen2.5-7B")),
        Surroundings(gpu=GPUS["L4-24GB"]),
    )
    assert report.fits  # 15 GB of weights leave room on 22 GiB
    report = size_up(
        spec(trainer={"device": "cpu"}),
        ModelShape.of_config(qwen25("Qwen2.5-32B")),
        Surroundings(gpu=GPUS["L4-24GB"]),
    )
    assert "set servers.tensorParallel=4" in report.problems[0]
    four = spec(trainer={"device": "cpu"}, servers={"tensorParallel": 4}, storage={"size": "2Ti"})
    assert size_up(four, ModelShape.of_config(qwen25("Qwen2.5-32B")), Surroundings(gpu=GPUS["L4-24GB"])).fits


def test_every_problem_is_reported_at_once() -> None:
    report = checked(spec(storage={"size": "1Gi"}), model="Qwen2.5-32B", nodes=[1])
    trainer, disk, placement = report.problems
    assert trainer.startswith("the trainer needs")
    assert disk.startswith("storage.size is 1Gi")
    assert placement.startswith("no node has room")


def test_a_model_that_cannot_be_read_is_not_guessed_and_the_rest_is_checked() -> None:
    experiment = spec(actor={"mb_spec": {"max_tokens_per_mb": 2000}}, trainer={"processesPerNode": 8})
    report = size_up(experiment, UnknownModel("it is on a volume"), Surroundings(gpu=H100, nodes=[4]))
    assert report.not_checked == ("memory, disk and the model's limits: it is on a volume",)
    lengths, placement = report.problems
    assert "max_tokens_per_mb is 2000" in lengths
    assert placement.startswith("no node has room")
    assert (report.as_json()["trainer"], report.as_json()["disk_bytes"]) == (None, None)


def test_the_fix_for_too_many_tokens_is_the_largest_microbatch_that_fits() -> None:
    experiment = spec(actor={"mb_spec": {"max_tokens_per_mb": 400_000}})
    (problem,) = checked(experiment).problems
    tokens = int(problem.rsplit("max_tokens_per_mb=", 1)[1])
    assert checked(spec(actor={"mb_spec": {"max_tokens_per_mb": tokens}})).fits
    assert not checked(spec(actor={"mb_spec": {"max_tokens_per_mb": tokens + 1025}})).fits


def test_the_json_form_has_the_documented_keys() -> None:
    found = checked(spec()).as_json()
    assert found["fits"] is True
    assert found["trainer"]["bytes_per_gpu"]["total"] == sum(
        size for name, size in found["trainer"]["bytes_per_gpu"].items() if name != "total"
    )
    assert found["server"]["kv_tokens"] > 0
    assert found["disk_bytes"] > 0


def test_processes_on_the_cpu_have_no_gpu_memory() -> None:
    report = checked(spec(servers={"device": "cpu"}, trainer={"device": "cpu"}))
    assert report.as_json()["trainer"] is None
    assert report.as_json()["server"] is None


SIZE = st.one_of(st.integers(1, 64), st.integers(1, 2**20), st.just(2**12))


@settings(max_examples=60)
@given(
    st.fixed_dictionaries(
        {
            "hidden_size": SIZE,
            "num_attention_heads": st.integers(1, 4096),
            "num_hidden_layers": st.integers(1, 4096),
            "vocab_size": st.integers(1, 2**24),
            "tie_word_embeddings": st.booleans(),
            "model_type": st.sampled_from(["llama", "qwen3", "gpt2", "gemma3", "unknown"]),
        },
        optional={
            "intermediate_size": SIZE,
            "num_key_value_heads": st.integers(1, 4096),
            "head_dim": SIZE,
            "num_experts": st.integers(1, 2**16),
        },
    ),
    st.sampled_from(list(GPUS.values())),
    st.booleans(),
)
def test_any_model_has_a_report_or_an_error(config: dict[str, Any], gpu: Gpu, checkpointing: bool) -> None:
    try:
        shape = ModelShape.of_config(config)
    except ValueError:  # heads that do not divide
        return
    report = size_up(spec(actor={"gradient_checkpointing": checkpointing}), shape, Surroundings(gpu=gpu, nodes=[2]))
    assert json.loads(json.dumps(report.as_json()))["fits"] is (not report.problems)
