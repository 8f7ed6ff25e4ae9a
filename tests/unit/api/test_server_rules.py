"""What a server refuses after its start is refused before it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from areal_api.errors import ConfigError
from areal_api.load import parse_experiment
from areal_api.server_rules import CHOICES, MAX_STOP_TEXTS
from hack.testbed.experiment_case import Case

_SGLANG, _EVAL = "spec.config.sglang", "spec.config.eval_gconfig"
_ARGS = "spec.servers.args"
_CPU = {"spec.servers.device": "cpu"}


def problem(changes: dict[str, Any]) -> str | None:
    try:
        parse_experiment(Case("", changes).experiment(), source="case")
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{_SGLANG}.skip_tokenizer_init": True, f"{_EVAL}.stop": ["."]}, "config.eval_gconfig.stop is ['.']"),
        (
            {f"{_SGLANG}.skip_tokenizer_init": True, f"{_EVAL}.min_new_tokens": 3},
            "config.eval_gconfig.min_new_tokens is 3 and needs the server's tokenizer",
        ),
        (
            {f"{_ARGS}.skip_tokenizer_init": True, "spec.config.gconfig.stop": ["."]},
            "config.gconfig.stop is ['.'] and needs the server's tokenizer",
        ),
        ({"spec.config.gconfig.stop": ["a"] * 33}, "config.gconfig.stop has 33 texts; SGLang takes at most 32"),
        ({"spec.config.gconfig.stop": [""]}, "config.gconfig.stop contains an empty text"),
        ({"spec.config.gconfig.stop_token_ids": [-1]}, "config.gconfig.stop_token_ids contains -1"),
        ({f"{_SGLANG}.chunked_prefill_size": -2}, "config.sglang.chunked_prefill_size: -2 is below -1"),
        (
            {f"{_SGLANG}.chunked_prefill_size": 100, f"{_ARGS}.page_size": 64},
            "config.sglang.chunked_prefill_size is 100, not a multiple of servers.args.page_size 64",
        ),
        (
            {f"{_ARGS}.disable_cuda_graph_padding": True, f"{_ARGS}.enable_torch_compile": True},
            "servers.args.disable_cuda_graph_padding and servers.args.enable_torch_compile exclude each other",
        ),
        (
            {f"{_ARGS}.enable_priority_scheduling": True, f"{_SGLANG}.schedule_policy": "lpm"},
            "config.sglang.schedule_policy is 'lpm'",
        ),
        ({f"{_ARGS}.retraction_policy": "priority"}, "it needs servers.args.enable_priority_scheduling"),
        (
            {f"{_ARGS}.speculative_algorithm": "EAGLE", f"{_SGLANG}.enable_mixed_chunk": True},
            "config.sglang.enable_mixed_chunk is true; it is not supported",
        ),
        ({f"{_ARGS}.dp_size": 4, f"{_SGLANG}.max_running_requests": 2}, "max_running_requests is 2, below"),
        ({f"{_SGLANG}.schedule_policy": "fifo"}, "config.sglang.schedule_policy is 'fifo'; choose one of lpm"),
        ({f"{_SGLANG}.sampling_backend": "fast"}, "config.sglang.sampling_backend is 'fast'; choose one of flashinfer"),
        ({f"{_SGLANG}.kv_cache_dtype": "int4"}, "config.sglang.kv_cache_dtype is 'int4'; choose one of auto"),
        ({f"{_ARGS}.log_level": "loud"}, "servers.args.log_level is 'loud'; choose one of critical"),
        ({**_CPU, f"{_SGLANG}.dtype": "auto"}, "config.sglang.dtype is auto"),
        ({**_CPU, f"{_SGLANG}.sampling_backend": "flashinfer"}, "needs servers.device cuda; set pytorch"),
        (
            {f"{_SGLANG}.context_length": 4096},
            "config.sglang.context_length is 4096, but a request of config.gconfig may have 16385 tokens",
        ),
        (
            {f"{_SGLANG}.context_length": 600, "spec.config.gconfig.max_new_tokens": 512,
             "spec.config.train_dataset.max_length": 100},
            "may have 612 tokens",
        ),
        ({f"{_SGLANG}.max_total_tokens": 1000}, "config.sglang.max_total_tokens is 1000, but a request"),
        (
            {f"{_SGLANG}.context_length": 600, "spec.config.gconfig.max_new_tokens": 100,
             f"{_EVAL}.max_new_tokens": 700},
            "a request of config.eval_gconfig may have 701 tokens",
        ),
        ({"spec.config.seed": 2**32}, "config.seed: 4294967296 is above 2147483647"),
    ],
)  # fmt: skip
def test_a_combination_that_a_server_refuses_is_refused_with_its_fix(changes: dict[str, Any], message: str) -> None:
    assert message in str(problem(changes))


@pytest.mark.parametrize(
    "changes",
    [
        {f"{_SGLANG}.skip_tokenizer_init": True, "spec.config.gconfig.stop_token_ids": [1]},
        {"spec.config.gconfig.stop": ["a"] * MAX_STOP_TEXTS},
        {f"{_SGLANG}.chunked_prefill_size": -1, f"{_ARGS}.page_size": 64},
        {f"{_SGLANG}.chunked_prefill_size": 128, f"{_ARGS}.page_size": 64},
        {f"{_ARGS}.enable_priority_scheduling": True, f"{_SGLANG}.schedule_policy": "lof"},
        {f"{_SGLANG}.context_length": 16385},
        {f"{_SGLANG}.context_length": 4096, f"{_ARGS}.allow_auto_truncate": True},
        {**_CPU, f"{_SGLANG}.dtype": "float32"},
    ],
)
def test_a_combination_that_a_server_takes_is_accepted(changes: dict[str, Any]) -> None:
    assert problem(changes) is None


def test_choices_are_those_of_the_installed_sglang() -> None:
    files = importlib.metadata.files("sglang") or []
    text = "".join(
        Path(str(file.locate())).read_text()
        for file in files
        if str(file).endswith(("arg_groups/choices.py", "fields/schedule.py", "fields/model.py"))
    )
    for name in ("sampling_backend", "kv_cache_dtype", "schedule_policy"):
        assert [choice for choice in CHOICES[name] if f'"{choice}"' not in text] == []
