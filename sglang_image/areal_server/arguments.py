"""Our configuration → SGLang's arguments and environment. Pure: nothing here imports SGLang or looks at the machine."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from areal_api.config import SGLangConfig

Device = Literal["cuda", "cpu"]

CPU_ATTENTION = "areal_padded"
STAND_INS = Path(__file__).parent / "cpu" / "stand_ins"
# Arguments that belong to the run, not to servers.args, and where each is said.
_OWNED = {
    "tokenizer_path": "config.tokenizer_path",
    "model_path": "config.sglang.model_path or config.actor.path",
    "device": "servers.device",
    "tp_size": "servers.tensorParallel",
    "host": "the launcher",
    "port": "the launcher",
    "api_key": "the API key file of the run",
    "admin_api_key": "the API key file of the run",
    "weight_version": "the trainer",
}


@dataclass(frozen=True)
class Flag:
    """How SGLang takes one field of its ServerArgs on the command line."""

    option: str
    kind: Literal["switch", "either", "value", "list"]  # either: --x and --no-x
    default: Any = None


def server_arguments(
    sglang: SGLangConfig,
    extra: Mapping[str, Any],
    *,
    device: Device,
    model_path: str,
    tokenizer_path: str | None,
    tensor_parallel: int,
    host: str,
    port: int,
    random_seed: int,
    flags: Mapping[str, Flag],
) -> list[str]:
    """SGLang's argument vector; the API key is not in it, SGLang gets that in memory.

    `extra` is servers.args: fields of ServerArgs by their names, which win over `sglang`. `flags` are those that this
    SGLang knows (`launch.sglang_flags`). Raises ValueError that names field, value and fix.
    """
    arguments = _arguments(sglang, device) | {
        "model_path": model_path,
        "tokenizer_path": tokenizer_path,
        "device": device,
        "tp_size": tensor_parallel,
        "host": host,
        "port": port,
        "random_seed": sglang.random_seed if sglang.random_seed is not None else random_seed,
    }
    for name, value in extra.items():
        if name in _OWNED:
            raise ValueError(f"servers.args.{name}: {value!r} cannot be set here; it comes from {_OWNED[name]}")
        arguments[name] = value
    return [word for name, value in arguments.items() for word in _words(name, value, flags)]


def server_environment(
    device: Device, environ: Mapping[str, str], *, tensor_parallel: int = 1, cores: Sequence[int] = ()
) -> dict[str, str]:
    """What SGLang's processes need in their environment besides `environ`, which is kept where it says something.

    `cores` are the processor's that this server may use: on a CPU they are shared out to the `tensor_parallel` ranks.
    """
    if device == "cuda":
        return {}
    defaults = {
        "OMP_NUM_THREADS": "1",
        # glibc gives large tensors back to the system when they are freed, and takes and clears pages for the next
        # one: 8 % of a decode step. Let it keep them.
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**33),
        "MALLOC_TOP_PAD_": str(2**26),
    }
    if tensor_parallel > 1:
        if len(cores) < tensor_parallel:
            raise ValueError(
                f"servers.tensorParallel: {tensor_parallel} on cpu needs as many cores, this server has {len(cores)}"
            )
        shares = [cores[rank::tensor_parallel] for rank in range(tensor_parallel)]
        # PyPI's torch brings NCCL, which SGLang loads where it finds it, also for ranks without a GPU: they fail then.
        defaults["SGLANG_NCCL_SO_PATH"] = "none"
        defaults["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, share)) for share in shares)
    env = {name: value for name, value in defaults.items() if name not in environ}
    path = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if str(STAND_INS) not in path:
        env["PYTHONPATH"] = os.pathsep.join([str(STAND_INS), *path])
    if environ.get("SGLANG_USE_CPU_ENGINE") != "1":
        env["SGLANG_USE_CPU_ENGINE"] = "1"
    return env


def _arguments(sglang: SGLangConfig, device: Device) -> dict[str, Any]:
    """The fields of config.sglang, with what a CPU server needs besides."""
    arguments = {name: value for name, value in sglang if value is not None}
    if device == "cuda":
        return arguments
    if sglang.dtype == "auto":
        raise ValueError("sglang.dtype: 'auto' makes SGLang take 16 bits for a model in 32; say float32 or bfloat16")
    # SGLang would take this share of all memory for the KV cache; on a CPU the cache has a size of its own.
    arguments.pop("mem_fraction_static", None)
    cpu_defaults = {
        "attention_backend": CPU_ATTENTION,
        "max_total_tokens": 65536,
        "sleep_on_idle": True,  # an idle scheduler takes a whole core otherwise
        # There is no second device to overlap with, and overlapping computes one token too many a sequence.
        "disable_overlap_schedule": True,
    }
    return arguments | {name: value for name, value in cpu_defaults.items() if not arguments.get(name)}


def _words(name: str, value: Any, flags: Mapping[str, Flag]) -> list[str]:
    """One argument as SGLang's command line takes it; nothing where it says what is so anyway."""
    flag = flags.get(name)
    if flag is None:
        near = difflib.get_close_matches(name, flags, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "see the fields of SGLang's ServerArgs"
        raise ValueError(f"servers.args.{name}: {value!r}: this SGLang has no argument {name!r}; {hint}")
    if value is None:
        return []
    if flag.kind in ("switch", "either"):
        if not isinstance(value, bool):
            raise ValueError(f"servers.args.{name}: {value!r} must be true or false")
        if value:
            return [flag.option]
        if flag.kind == "either":
            return [flag.option.replace("--", "--no-", 1)]
        if flag.default:
            raise ValueError(f"servers.args.{name}: SGLang's {flag.option} can only be switched on")
        return []
    if flag.kind == "list":
        values = value if isinstance(value, list | tuple) else [value]
        return [flag.option, *map(str, values)] if values else []
    text = json.dumps(value) if isinstance(value, dict | list | bool) else str(value)
    return [f"{flag.option}={text}"]  # with "=", so that a value may begin with a dash
