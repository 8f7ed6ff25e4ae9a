"""AReaL's files of three generations become experiments; every dropped key has a note."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import support
from areal_api.areal_config.convert import convert, object_name
from areal_api.areal_config.tree import get, set_in
from areal_api.errors import ConfigError
from areal_api.experiment import GRPOExperiment
from areal_api.load import load_experiment, read_yaml, resolve
from areal_api.render import experiment_yaml

FILES = Path(support.__path__[0]) / "areal_files"


def raw(name: str) -> dict[str, Any]:
    return resolve(read_yaml(FILES / f"{name}.yaml"), source=name)


def converted(name: str) -> tuple[GRPOExperiment, list[str]]:
    experiment, notes = convert(raw(name))
    return GRPOExperiment.model_validate(experiment), notes


def with_change(key: str, value: Any, *, name: str = "v03") -> dict[str, Any]:
    data = raw(name)
    set_in(data, key, value)
    return data


def test_the_first_generation() -> None:
    experiment, notes = converted("lite")
    spec = experiment.spec
    assert (experiment.name, spec.config.trial_name, spec.config.seed) == ("math-lite", "first", 7)
    assert (spec.servers.replicas, spec.servers.tensor_parallel, spec.trainer.ranks) == (4, 1, 4)
    assert (spec.config.cluster.n_nodes, spec.config.cluster.n_gpus_per_node) == (1, 8)
    actor = spec.config.actor
    assert (actor.path, actor.eps_clip, actor.ppo_n_minibatches) == ("Qwen/Qwen2-1.5B-Instruct", 0.4, 1)
    assert (actor.optimizer.lr, actor.behav_imp_weight_cap, actor.use_decoupled_loss) == (2e-5, 5.0, True)
    assert actor.adv_norm is not None
    assert (actor.adv_norm.mean_level, actor.adv_norm.std_level) == ("group", "group")
    assert spec.servers.args == {"enable_torch_compile": True}
    assert (spec.config.recover.mode, spec.config.recover.freq_secs) == ("auto", 1800)
    assert spec.config.train_dataset.path == "openai/gsm8k"
    assert "checkpointer: becomes recover" in notes
    assert "actor.backend" not in " ".join(notes)


def test_the_second_generation() -> None:
    experiment, notes = converted("v03")
    spec = experiment.spec
    assert (spec.servers.replicas, spec.servers.tensor_parallel) == (4, 2)
    assert (spec.trainer.nodes, spec.trainer.processes_per_node) == (1, 8)
    norm = spec.config.actor.reward_norm
    assert norm is not None
    assert (norm.mean_level, norm.std_level) == ("group", "group")
    assert spec.config.actor.weight_update_mode == "distributed"
    assert (spec.config.recover.mode, spec.run_policy.backoff_limit) == ("disabled", 5)
    assert spec.config.valid_dataset is not None
    assert spec.config.valid_dataset.shuffle is True
    assert "recover.retries: becomes runPolicy.backoffLimit" in notes
    assert not any("not a secret" in note for note in notes)


def test_the_third_generation() -> None:
    experiment, notes = converted("v10")
    spec = experiment.spec
    assert (spec.servers.replicas, spec.servers.tensor_parallel, spec.trainer.ranks) == (4, 1, 4)
    assert spec.config.actor.behav_imp_weight_cap == 4.0
    assert spec.config.rollout.dump_to_file is True
    assert "vllm: the servers are SGLang" in notes
    assert any(note.startswith("rollout.scheduling_spec") or "rollout.scheduling_spec" in note for note in notes)


@pytest.mark.parametrize("name", ["lite", "v03", "v10"])
def test_every_key_is_kept_translated_or_named(name: str) -> None:
    data = raw(name)
    experiment, notes = converted(name)
    text = " ".join(notes)
    same = {"tokenizer_path", "sglang.model_path", "sglang.random_seed", "rollout.consumer_batch_size"}
    places = {"experiment_name", "allocation_mode", "rollout.backend", "actor.backend", "n_nodes", "n_gpus_per_node"}
    kept = experiment.spec.config.model_dump()
    for key in _leaves(data):
        value = get(data, key)
        in_config = get(kept, key, default=...)
        named = any(part in text for part in _prefixes(key))
        assert in_config == value or named or key in same | places, key


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            keys += _leaves(value, f"{prefix}{key}.")
        else:
            keys.append(f"{prefix}{key}")
    return keys


def _prefixes(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1) if ".".join(parts[:end]) != "actor"]


@pytest.mark.parametrize("name", ["lite", "v03", "v10"])
def test_what_is_written_loads_to_the_same_experiment(name: str, tmp_path: Path) -> None:
    experiment = load_experiment(FILES / f"{name}.yaml")
    path = tmp_path / "experiment.yaml"
    path.write_text(experiment_yaml(experiment))
    assert load_experiment(path) == experiment
    assert experiment == converted(name)[0]


def test_the_input_is_not_modified() -> None:
    data = raw("v10")
    convert(data)
    assert data == raw("v10")


def test_a_configuration_without_areals_keys_is_kept() -> None:
    config = {"experiment_name": "a", "actor": {"path": "m"}, "train_dataset": {"path": "d"}}
    experiment, notes = convert(config)
    assert experiment["spec"] == {"config": {"actor": {"path": "m"}, "train_dataset": {"path": "d"}}}
    assert notes == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tgi:d4+fsdp:d4", "backend tgi in 'tgi:d4' is not supported, the servers run sglang; write sglang:d4"),
        ("sglang:d4p2+d4", "p2 in 'sglang:d4p2' requests pipeline parallelism in the servers"),
        ("sglang:d4+deepspeed:d2", "backend deepspeed in 'deepspeed:d2' is not supported, the trainer run fsdp"),
        ("d4p1t1", "'d4p1t1' has a trainer and no servers, so this file samples nothing; put sglang:d4+ first"),
        ("sglang:d4t2", "'sglang:d4t2' has servers and no trainer, so this file does not train"),
        ("a+b+c", "'a+b+c' is not of the form servers+trainer; write for example sglang:d4t1+fsdp:d4"),
        ("sglang:d4+eval", "'eval' is not a backend with its sizes; write for example fsdp:d4"),
        ("sglang:d4+fsdp:d4e3", "e3 in 'fsdp:d4e3' does not divide the 4 ranks of the trainer"),
        ("sglang:d0+d1", "are not letters d, p, t with counts of at least 1"),
    ],
)
def test_allocations_that_cannot_run_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert(with_change("allocation_mode", text), source="f.yaml")
    assert str(caught.value).startswith("f.yaml: allocation_mode: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("servers", "trainer", "ranks"),
    [
        ("vllm:d2t2", "megatron:d2p2t2", 8),
        ("sglang:d4", "archon:d4", 4),
        ("vllm:d4", "megatron:(attn:d2t2|ffn:d1e4)", 4),
    ],
)
def test_other_engines_become_ours_on_as_many_gpus(servers: str, trainer: str, ranks: int) -> None:
    data = with_change("rollout.backend", servers, name="v10")
    set_in(data, "actor.backend", trainer)
    experiment, notes = convert(data)
    spec = experiment["spec"]
    assert spec["servers"]["replicas"] * spec["servers"]["tensorParallel"] == 4
    assert spec["trainer"]["nodes"] * spec["trainer"]["processesPerNode"] == ranks
    assert any("becomes fsdp, on as many GPUs" in note for note in notes)


def test_all_problems_of_a_file_are_reported_at_once() -> None:
    data = with_change("allocation_mode", "sglang:d4+tgi:d2")
    changes = {"actor.init_lora_path": "x", "env_vars": {"A": "1"}, "actor.group_size": 3, "actor.no_such": 1}
    for key, value in changes.items():
        set_in(data, key, value)
    with pytest.raises(ConfigError) as caught:
        convert(data, source="f.yaml")
    text = str(caught.value)
    assert text.startswith("f.yaml: 5 problems")
    for part in (
        "allocation_mode",
        "actor.init_lora_path",
        "env_vars",
        "actor.group_size",
        "actor.no_such: unknown key",
    ):
        assert part in text


KINDS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    # keys of the file; keys of the experiment; words of a note
    ({"allocation_mode": "sglang:d2t4+megatron:(attn:d2p2t2+ffn:d4e2)"}, {"trainer.processesPerNode": 8}, "megatron"),
    ({"allocation_mode": "sglang:d2+fsdp:d4e2"}, {"config.actor.parallel.expert": 2}, "allocation"),
    ({"allocation_mode": "sglang:d2+megatron:(attn:d2t2|ffn:e4)"}, {"config.actor.parallel.expert": 4}, "megatron"),
    ({"allocation_mode": "megatron[actor]:(attn:d1p4|ffn:e4)+sglang[rollout]:d2"}, {"servers.replicas": 2}, "pipeline"),
    (
        {"allocation_mode": "vllm:d1p2t2+fsdp:d2"},
        {"servers.tensorParallel": 4},
        "no pipeline parallelism in the servers",
    ),
    ({"actor.backend": "megatron", "allocation_mode": "sglang:d2+d4"}, {"trainer.processesPerNode": 4}, "allocation"),
    ({"cluster.n_gpus_per_node": "4", "allocation_mode": "sglang:d1+d8"}, {"trainer.nodes": 2}, "allocation"),
    (
        {"rollout.openai": {"mode": "inline", "turn_discount": 0.5}},
        {"config.rollout.agent.turn_discount": 0.5},
        "rollout.openai: becomes rollout.agent",
    ),
    (
        {"rollout.agent": {"openai": {"export_style": "concat"}}},
        {"config.rollout.agent.export_style": "concat"},
        "rollout.openai: becomes rollout.agent",
    ),
    ({"gconfig.n_samples": 1, "actor.reward_norm.group_size": 8}, {"config.gconfig.n_samples": 8}, "raised from 1"),
    ({"actor.mb_spec.max_tokens_per_gpu": 7}, {"config.actor.mb_spec.max_tokens_per_mb": 7}, "max_tokens_per_mb"),
    ({"actor.optimizer.type": "adam_bf16"}, {"config.actor.optimizer.state_dtype": "float32"}, "beta2"),
    (
        {"actor.optimizer": {"type": "adam_bf16", "beta2": 0.95}},
        {"config.actor.optimizer.state_dtype": "bfloat16"},
        "becomes adam with state_dtype bfloat16",
    ),
    ({"actor.optimizer.offload": True}, {"config.actor.optimizer.offload": True}, "allocation"),
    ({"actor.enable_mtp_training": True, "sglang.speculative_num_steps": 3}, {}, "do not speculate"),
    ({"sglang.quantization": "fp8"}, {"servers.args.quantization": "fp8"}, "servers.args"),
    ({"rollout.return_routed_experts": True}, {"config.actor.router_replay": True}, "becomes actor.router_replay"),
    ({"actor.use_cispo_loss": True}, {"config.actor.use_cispo_loss": True}, "allocation"),
]


@pytest.mark.parametrize(("keys", "expected", "words"), KINDS, ids=lambda value: str(value)[:50])
def test_a_key_of_any_version_is_translated(keys: dict[str, Any], expected: dict[str, Any], words: str) -> None:
    data = raw("v03")
    for key, value in keys.items():
        set_in(data, key, value)
    data["train_dataset"]["batch_size"] = 16
    experiment, notes = convert(data)
    for key, value in expected.items():
        assert get(experiment["spec"], key) == value, key
    assert words in " ".join(notes) or words == "allocation"


@pytest.mark.parametrize("value", ["eight", -1, True, "9" * 5000])
def test_a_number_of_gpus_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.n_gpus_per_node is .*write a whole number") as caught:
        convert(with_change("cluster.n_gpus_per_node", value))
    assert len(str(caught.value)) < 1000


def test_the_agent_section_is_kept_without_what_has_no_meaning_here() -> None:
    agent = {"mode": "inline", "tool_call_parser": "qwen25", "turn_discount": 0.9, "export_style": "concat"}
    dropped = {"chat_template_type": "hf", "engine_max_tokens": None, "admin_api_key": "k"}
    experiment, notes = convert(with_change("rollout.agent", agent | dropped))
    kept = {key: value for key, value in agent.items() if key != "mode"}
    assert experiment["spec"]["config"]["rollout"]["agent"] == kept
    for key in ("mode", *dropped):
        assert any(f"rollout.agent.{key}" in note for note in notes)
    for kept in ({"mode": "online"}, {"mode": "subproc", "subproc_max_workers": 8}):
        assert convert(with_change("rollout.agent", kept))[0]["spec"]["config"]["rollout"]["agent"] == kept
    assert "agent" not in convert(with_change("rollout.agent", None))[0]["spec"]["config"]["rollout"]


def test_message_preprocessors_become_import_paths() -> None:
    key = "rollout.agent.message_preprocessors"
    experiment, notes = convert(with_change(key, ["examples.swe.preprocessors.StripHeader"]))
    assert experiment["spec"]["config"]["rollout"]["agent"] == {
        "message_preprocessors": ["examples.swe.preprocessors:StripHeader"]
    }
    assert f"{key}: becomes import paths; the trainer needs these modules" in notes


@pytest.mark.parametrize(("key", "value"), [("mode", "thread")])
def test_an_agent_setting_that_would_change_the_run_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"rollout\.agent\.{key} is"):
        convert(with_change("rollout.agent", {key: value}))


def test_training_on_images_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sglang\.enable_multimodal is true: only text is supported"):
        convert(with_change("sglang.enable_multimodal", True))
    assert "args" not in convert(with_change("sglang.enable_multimodal", False))[0]["spec"].get("servers", {})


def test_ranks_are_spread_over_nodes() -> None:
    data = with_change("allocation_mode", "sglang:d8+fsdp:d24")
    set_in(data, "cluster.n_nodes", 4)
    set_in(data, "train_dataset.batch_size", 48)
    trainer = convert(data)[0]["spec"]["trainer"]
    assert (trainer["nodes"], trainer["processesPerNode"]) == (3, 8)
    set_in(data, "allocation_mode", "sglang:d8+fsdp:d12")
    set_in(data, "train_dataset.batch_size", 24)
    trainer = convert(data)[0]["spec"]["trainer"]
    assert (trainer["nodes"], trainer["processesPerNode"]) == (2, 6)


@pytest.mark.parametrize(("batch", "ranks"), [(16, 16), (30, 30), (7, 7), (64, 32), (100, 25)])
def test_the_number_of_ranks_divides_the_batch(batch: int, ranks: int) -> None:
    data = with_change("actor.backend", "megatron:d8p4", name="v10")
    set_in(data, "train_dataset.batch_size", batch)
    experiment, notes = convert(data)
    trainer = experiment["spec"]["trainer"]
    assert trainer["nodes"] * trainer["processesPerNode"] == ranks
    assert any(f"{ranks} ranks instead of 32" in note for note in notes) == (batch % 32 != 0)


def test_an_allocation_larger_than_the_cluster_raises_the_number_of_nodes() -> None:
    data = with_change("actor.backend", "fsdp:d8", name="v10")
    set_in(data, "cluster.n_nodes", 1)
    set_in(data, "cluster.n_gpus_per_node", 8)
    experiment, notes = convert(data)
    assert get(experiment, "spec.config.cluster.n_nodes") == 2
    assert any("cluster.n_nodes: raised from 1 to 2" in note for note in notes)


def test_limits_of_length_and_of_candidates_have_one_key() -> None:
    data = with_change("rollout.agent", {"mode": "inline", "engine_max_tokens": 3000})
    set_in(data, "gconfig.top_k", 1_000_000)
    experiment, notes = convert(data)
    assert get(experiment, "spec.config.gconfig.max_tokens") == 3000
    assert get(experiment, "spec.config.gconfig.top_k") is None
    assert "rollout.agent.engine_max_tokens: becomes gconfig.max_tokens" in notes
    assert any("larger than every vocabulary" in note for note in notes)


def test_servers_that_share_gpus_with_the_trainer_get_their_own() -> None:
    experiment, notes = convert(with_change("allocation_mode", "sglang:d4|fsdp:d4"))
    assert (experiment["spec"]["servers"]["replicas"], experiment["spec"]["trainer"]["processesPerNode"]) == (4, 4)
    assert "allocation_mode: servers and trainer use separate GPUs instead of sharing them" in notes


def test_requests_fit_the_context_of_the_servers() -> None:
    data = with_change("sglang.context_length", 2048)
    set_in(data, "gconfig.max_tokens", 4096)
    experiment, notes = convert(data)
    assert get(experiment, "spec.config.gconfig.max_tokens") == 2048
    assert any(note.startswith("gconfig.max_tokens: set to 2048") for note in notes)


@pytest.mark.parametrize("sizes", ["d2t2c2", "d2p1t2c2", "c2t2d2"])
def test_the_trainer_divides_layers_and_tokens_as_the_file_says(sizes: str) -> None:
    experiment, _ = convert(with_change("allocation_mode", f"sglang:d4+fsdp:{sizes}"))
    assert experiment["spec"]["trainer"]["processesPerNode"] == 8
    assert experiment["spec"]["config"]["actor"]["parallel"] == {"tensor": 2, "context": 2}
    GRPOExperiment.model_validate(experiment)


def test_only_data_parallel_ranks_need_prompts() -> None:
    data = with_change("allocation_mode", "sglang:d4+fsdp:d3t2")
    set_in(data, "train_dataset.batch_size", 8)
    experiment, notes = convert(data)
    assert experiment["spec"]["trainer"]["processesPerNode"] == 4
    assert any("2 ranks instead of 3" in note for note in notes)


def test_pipeline_parallelism_of_the_trainer_is_refused_with_the_sizes_to_write() -> None:
    with pytest.raises(ConfigError, match=r"p2 in 'fsdp:d4p2' requests pipeline parallelism.*write d8 and leave p out"):
        convert(with_change("allocation_mode", "sglang:d4+fsdp:d4p2"))


def test_adapters_are_trained_and_servers_get_merged_weights() -> None:
    data = with_change("actor.use_lora", True)
    for key, value in {
        "actor.lora_rank": 8,
        "actor.peft_type": "lora",
        "rollout.use_lora": True,
        "gconfig.lora_name": "x",
        "sglang.enable_lora": True,
        "sglang.max_lora_rank": 8,
    }.items():
        set_in(data, key, value)
    experiment, notes = convert(data)
    spec = experiment["spec"]
    assert spec["config"]["actor"]["lora"] == {"rank": 8, "alpha": 16, "target_modules": ["all-linear"]}
    assert "lora" not in json.dumps(spec["config"] | {"actor": {}, "args": spec["servers"].get("args")})
    assert any(note.endswith("become actor.lora") for note in notes)
    set_in(data, "actor.peft_type", "ia3")
    with pytest.raises(ConfigError, match=r"actor\.peft_type is 'ia3'"):
        convert(data)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("actor.init_lora_path", "x", "actor.init_lora_path is 'x': use actor.lora"),
        ("actor.init_from_scratch", True, "actor.init_from_scratch is true: training starts from actor.path"),
        ("critic", {"path": "x"}, "critic is set: this file trains by PPO with a critic; only GRPO"),
        ("actor.group_size", 3, "actor.group_size is 3, gconfig.n_samples 4; they are one setting here"),
        ("actor.max_new_tokens", 3, "actor.max_new_tokens is 3, gconfig.max_new_tokens 1024"),
        ("actor.behave_imp_weight_mode", "truncate", "known modes: token_mask, token_truncate"),
        ("actor.rejection_sampling", {"uper": 5}, "actor.rejection_sampling.uper: unknown key"),
        ("actor.no_such", 1, "actor.no_such: unknown key"),
        ("rollout.return_routed_experts", 1, "rollout.return_routed_experts is 1; set it to true or false"),
        ("sglang.page_size", 1, "sglang.page_size: unknown key"),
    ],
)
def test_what_would_change_the_run_is_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert(with_change(key, value))
    assert message in str(caught.value)


def test_defaults_that_differ_are_written_out() -> None:
    data = raw("v03")
    for key in ("reward_scaling", "reward_bias", "kl_ctl"):
        del data["actor"][key]
    experiment, notes = convert(data)
    actor = experiment["spec"]["config"]["actor"]
    assert (actor["reward_scaling"], actor["reward_bias"], actor["kl_ctl"]) == (1.0, 0.0, 0.1)
    assert "actor.kl_ctl: missing; set to AReaL's default 0.1, which differs from ours" in notes


def test_without_a_reference_section_areal_applies_no_penalty() -> None:
    data = with_change("actor.kl_ctl", 0.2)
    del data["ref"]
    experiment, notes = convert(data)
    assert experiment["spec"]["config"]["actor"]["kl_ctl"] == 0.0
    assert any(note.startswith("actor.kl_ctl: changed from 0.2") for note in notes)


def test_without_rejection_sampling_the_newest_files_have_no_importance_weights() -> None:
    data = raw("v10")
    del data["actor"]["rejection_sampling"]
    experiment, notes = convert(data)
    actor = experiment["spec"]["config"]["actor"]
    assert (actor["use_decoupled_loss"], actor["recompute_logprob"]) == (False, True)
    assert any(note.startswith("actor.rejection_sampling: without it") for note in notes)


def test_a_disabled_weight_is_no_weight() -> None:
    data = with_change("actor.behave_imp_weight_mode", "disabled")
    set_in(data, "actor.use_decoupled_loss", True)
    actor = convert(data)[0]["spec"]["config"]["actor"]
    assert (actor["use_decoupled_loss"], actor["recompute_logprob"]) == (False, True)


def test_the_first_files_weigh_without_a_cap() -> None:
    data = raw("lite")
    del data["actor"]["behav_imp_weight_cap"]
    actor = convert(data)[0]["spec"]["config"]["actor"]
    assert (actor["use_decoupled_loss"], actor["behav_imp_weight_cap"]) == (True, None)


@pytest.mark.parametrize(
    ("adv_norm", "by_group", "level"), [(True, False, "batch"), (True, True, "group"), (False, False, None)]
)
def test_switches_of_the_first_files_are_levels(adv_norm: bool, by_group: bool, level: str | None) -> None:
    data = with_change("actor.adv_norm", adv_norm, name="lite")
    set_in(data, "actor.group_adv_norm", by_group)
    expected = None if level is None else {"mean_level": level, "std_level": level}
    assert convert(data)[0]["spec"]["config"]["actor"]["adv_norm"] == expected


def test_a_cluster_without_gpus_runs_on_the_cpu() -> None:
    data = with_change("cluster.n_gpus_per_node", 0, name="v10")
    experiment, notes = convert(data)
    assert (experiment["spec"]["servers"]["device"], experiment["spec"]["trainer"]["device"]) == ("cpu", "cpu")
    assert any("servers.device and trainer.device become cpu" in note for note in notes)


def test_a_backend_takes_precedence_over_an_allocation_mode() -> None:
    data = with_change("allocation_mode", "sglang:d1+d1", name="v10")
    experiment, notes = convert(data)
    assert experiment["spec"]["servers"]["replicas"] == 4
    assert "allocation_mode: rollout.backend and actor.backend take precedence" in notes


@pytest.mark.parametrize(
    ("text", "name"), [("GSM8K_grpo.v1", "gsm8k-grpo-v1"), ("a" * 50, "a" * 40), ("--", "experiment")]
)
def test_names_become_names_of_objects(text: str, name: str) -> None:
    assert object_name(text) == name


def test_a_name_that_no_object_can_have_is_kept_in_the_configuration() -> None:
    experiment, _ = convert(with_change("experiment_name", "My_Run"))
    assert experiment["metadata"]["name"] == "my-run"
    assert experiment["spec"]["config"]["experiment_name"] == "My_Run"


def test_overrides_may_use_areals_own_keys() -> None:
    experiment = load_experiment(FILES / "v03.yaml", ["allocation_mode=sglang:d2+fsdp:d2", "cluster.n_nodes=1"])
    assert (experiment.spec.servers.replicas, experiment.spec.trainer.ranks) == (2, 2)


def test_the_text_none_is_null_in_a_level() -> None:
    data = with_change("actor.reward_norm", {"mean_level": "group", "std_level": "none"})
    assert convert(data)[0]["spec"]["config"]["actor"]["reward_norm"] == {"mean_level": "group", "std_level": None}
