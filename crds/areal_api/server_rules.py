"""Settings that SGLang refuses only after its start, or that fail requests later. They are refused before a run starts.

Source: SGLang 0.5.23, srt/arg_groups/validation_hook.py, srt/arg_groups/choices.py, srt/sampling/sampling_params.py and
the length checks of srt/managers/tokenizer_manager.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from areal_api.config import GRPOConfig, SGLangConfig
from areal_api.data_config import DatasetConfig
from areal_api.generation import GenerationHyperparameters

MAX_STOP_TEXTS = 32
CPU_TOTAL_TOKENS = 65536  # KV cache of a CPU server without max_total_tokens

CHOICES: dict[str, tuple[str, ...]] = {
    "sampling_backend": ("flashinfer", "pytorch"),
    "kv_cache_dtype": (
        "auto", "fp8_e5m2", "fp8_e4m3", "bf16", "bfloat16", "mxfp8", "nvfp4", "fp4_mx_block16",
    ),
    "schedule_policy": (
        "lpm", "random", "fcfs", "dfs-weight", "lof", "priority", "routing-key", "hrrn", "shortest-prefill-first",
    ),
    "log_level": ("critical", "error", "warning", "info", "debug", "trace"),
}  # fmt: skip


def server_problems(config: GRPOConfig, args: Mapping[str, Any], *, device: str) -> list[str]:
    """A line per setting or combination that a server refuses. ``args``, of ``servers.args``, override ``sglang``."""
    settings = {name: getattr(config.sglang, name) for name in SGLangConfig.model_fields}
    settings |= {name: value for name, value in args.items() if value is not None}
    return [
        *_choice_problems(settings, args, device),
        *_combination_problems(settings, args),
        *_sampling_problems(config, settings),
        *_length_problems(config, settings, args, device),
    ]


def _key(name: str, args: Mapping[str, Any]) -> str:
    return f"servers.args.{name}" if name in args or name not in SGLangConfig.model_fields else f"config.sglang.{name}"


def _choice_problems(settings: Mapping[str, Any], args: Mapping[str, Any], device: str) -> Iterator[str]:
    for name, choices in CHOICES.items():
        value = settings.get(name)
        if value is not None and value not in choices:
            yield f"{_key(name, args)} is {value!r}; choose one of {', '.join(choices)}"
    if device == "cpu":
        if settings["dtype"] == "auto":
            yield f"{_key('dtype', args)} is auto: on a CPU SGLang would load 32-bit models in 16 bits; set float32"
        if settings.get("sampling_backend") == "flashinfer":
            yield f"{_key('sampling_backend', args)} is flashinfer, which needs servers.device cuda; set pytorch"


def _combination_problems(settings: Mapping[str, Any], args: Mapping[str, Any]) -> Iterator[str]:
    chunk, page = settings.get("chunked_prefill_size"), settings.get("page_size")
    if _whole(chunk) and _whole(page) and chunk > 0 and page > 0 and chunk % page:
        yield (
            f"{_key('chunked_prefill_size', args)} is {chunk}, not a multiple of servers.args.page_size {page}; "
            "make it one"
        )
    if settings.get("disable_cuda_graph_padding") and settings.get("enable_torch_compile"):
        yield (
            "servers.args.disable_cuda_graph_padding and servers.args.enable_torch_compile exclude each other; "
            "set one of them to false"
        )
    if settings.get("enable_priority_scheduling") and (settings.get("schedule_policy") or "fcfs") not in (
        "fcfs",
        "lof",
    ):
        yield (
            f"{_key('schedule_policy', args)} is {settings['schedule_policy']!r}; "
            "servers.args.enable_priority_scheduling needs fcfs or lof"
        )
    if settings.get("retraction_policy") == "priority" and not settings.get("enable_priority_scheduling"):
        yield (
            "servers.args.retraction_policy is priority; it needs servers.args.enable_priority_scheduling: set that "
            "to true"
        )
    if settings.get("speculative_algorithm") is not None and settings.get("enable_mixed_chunk"):
        yield f"{_key('enable_mixed_chunk', args)} is true; it is not supported with servers.args.speculative_algorithm"
    requests, replicas = settings.get("max_running_requests"), settings.get("dp_size")
    if _whole(requests) and _whole(replicas) and requests < replicas:
        yield f"{_key('max_running_requests', args)} is {requests}, below servers.args.dp_size {replicas}; raise it"


def _samplings(config: GRPOConfig) -> Iterator[tuple[str, GenerationHyperparameters, DatasetConfig | None]]:
    """Key, sampling parameters and data set of training and of every evaluation that sets its own parameters."""
    yield "gconfig", config.gconfig, config.train_dataset
    if config.eval_gconfig is not None:
        yield "eval_gconfig", config.eval_gconfig, config.valid_dataset
    for index, one in enumerate(config.evaluator.sets):
        if one.gconfig is not None:
            yield f"evaluator.sets[{index}].gconfig", one.gconfig, one.dataset


def _sampling_problems(config: GRPOConfig, settings: Mapping[str, Any]) -> Iterator[str]:
    for key, sampling, _ in _samplings(config):
        if settings.get("skip_tokenizer_init"):
            for name, value in (("stop", sampling.stop), ("min_new_tokens", sampling.min_new_tokens)):
                if value:
                    yield (
                        f"config.{key}.{name} is {value!r} and needs the server's tokenizer; "
                        "set sglang.skip_tokenizer_init to false"
                    )
        if len(sampling.stop or ()) > MAX_STOP_TEXTS:
            yield f"config.{key}.stop has {len(sampling.stop or ())} texts; SGLang takes at most {MAX_STOP_TEXTS}"
        if "" in (sampling.stop or ()):
            yield f"config.{key}.stop contains an empty text, which ends every completion at once; remove it"
        negative = [token for token in sampling.stop_token_ids if token < 0]
        if negative:
            yield f"config.{key}.stop_token_ids contains {negative[0]}; a token id is at least 0"


def _length_problems(
    config: GRPOConfig, settings: Mapping[str, Any], args: Mapping[str, Any], device: str
) -> Iterator[str]:
    """A request above the context length fails; one above the KV cache is cut short without an error."""
    if settings.get("allow_auto_truncate"):
        return
    pool = settings.get("max_total_tokens") or (CPU_TOTAL_TOKENS if device == "cpu" else None)
    for name, limit in (("context_length", settings.get("context_length")), ("max_total_tokens", pool)):
        if not _whole(limit):
            continue
        for key, sampling, data in _samplings(config):
            longest = _longest(sampling, None if data is None else data.max_length)
            if longest > limit:
                yield (
                    f"{_key(name, args)} is {limit}, but a request of config.{key} may have {longest} tokens; "
                    "raise it, or lower max_new_tokens, max_tokens or the data set's max_length"
                )


def _longest(sampling: GenerationHyperparameters, max_length: int | None) -> int:
    """Tokens of the longest request; of one with a prompt of one token where the prompts have no bound."""
    return min(sampling.max_tokens, (1 if max_length is None else max_length) + sampling.max_new_tokens)


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
