"""Converts our configuration to SGLang's arguments and environment. Pure: it does not import SGLang."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from areal_api.config import SGLangConfig
from areal_server.addresses import is_loopback
from areal_server.node_group import Member

Device = Literal["cuda", "cpu"]

CPU_ATTENTION = "areal_padded"
STUBS_DIR = Path(__file__).parent / "cpu" / "stubs"
# Arguments that servers.args must not set, and where each comes from.
_RESERVED = {
    "tokenizer_path": "config.tokenizer_path",
    "model_path": "config.sglang.model_path or config.actor.path",
    "device": "servers.device",
    "tp_size": "servers.tensorParallel",
    "nnodes": "servers.nodesPerServer",
    "node_rank": "servers.nodesPerServer",
    "dist_init_addr": "servers.nodesPerServer",
    "host": "the launcher",
    "port": "the launcher",
    "api_key": "the API key file of the run",
    "admin_api_key": "the API key file of the run",
    "weight_version": "the trainer",
}


@dataclass(frozen=True)
class Flag:
    """The command-line option of one field of SGLang's ServerArgs."""

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
    member: Member | None = None,
    reports_experts: bool = False,
) -> list[str]:
    """SGLang's argument vector, without the API key, which is passed in memory.

    `extra` is servers.args: fields of ServerArgs by name, which override `sglang`. `flags` are the options of the
    installed SGLang (`launch.sglang_flags`), `member` is this node's place in a server on several nodes,
    `reports_experts` actor.router_replay. Raises ValueError naming field, value and fix.
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
    if member is not None:
        leader = f"[{member.leader}]" if ":" in member.leader else member.leader
        arguments |= {"nnodes": member.nodes, "node_rank": member.rank, "dist_init_addr": f"{leader}:{member.port + 1}"}
    if reports_experts:
        arguments["enable_return_routed_experts"] = True
    for name, value in extra.items():
        if reports_experts and name == "enable_return_routed_experts" and value is not True:
            raise ValueError(f"servers.args.{name}: {value!r}, but actor.router_replay is true; leave it out")
        if name in _RESERVED:
            raise ValueError(f"servers.args.{name}: {value!r} cannot be set here; it is set from {_RESERVED[name]}")
        arguments[name] = value
    return [word for name, value in arguments.items() for word in _command_line(name, value, flags)]


def server_environment(
    device: Device,
    environ: Mapping[str, str],
    *,
    tensor_parallel: int = 1,
    nodes: int = 1,
    cores: Sequence[int] = (),
    host: str = "0.0.0.0",
) -> dict[str, str]:
    """The variables to add to `environ` for SGLang's processes. Values already in `environ` are kept.

    `cores` are the CPU cores available to this server; on a CPU they are divided among the ranks, those of
    `tensor_parallel` that run on this one of `nodes`.
    """
    # Gloo listens on the address of the host name otherwise.
    local = {"GLOO_SOCKET_IFNAME": "lo"} if is_loopback(host) and sys.platform == "linux" else {}
    if device == "cuda":
        return {name: value for name, value in local.items() if name not in environ}
    defaults = local | {
        "OMP_NUM_THREADS": "1",
        # By default glibc returns large freed tensors to the kernel and faults in zeroed pages for the next one, which
        # takes 8 % of a decode step. Keep the memory instead.
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**33),
        "MALLOC_TOP_PAD_": str(2**26),
    }
    if tensor_parallel > 1:
        here = tensor_parallel // nodes
        if len(cores) < here:
            raise ValueError(
                f"servers.tensorParallel: {tensor_parallel} on cpu needs as many cores, this server has {len(cores)}"
                + (f" on one of its {nodes} nodes" if nodes > 1 else "")
            )
        shares = [cores[rank::here] for rank in range(here)]
        # SGLang loads the NCCL of PyPI's torch if it finds it, even for ranks without a GPU, which then fail.
        defaults["SGLANG_NCCL_SO_PATH"] = "none"
        defaults["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, share)) for share in shares)
    env = {name: value for name, value in defaults.items() if name not in environ}
    path = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if str(STUBS_DIR) not in path:
        env["PYTHONPATH"] = os.pathsep.join([str(STUBS_DIR), *path])
    if environ.get("SGLANG_USE_CPU_ENGINE") != "1":
        env["SGLANG_USE_CPU_ENGINE"] = "1"
    return env


def _arguments(sglang: SGLangConfig, device: Device) -> dict[str, Any]:
    """The fields of config.sglang plus the defaults of a CPU server."""
    arguments = {name: value for name, value in sglang if value is not None}
    if device == "cuda":
        return arguments
    if sglang.dtype == "auto":
        raise ValueError("sglang.dtype: 'auto' makes SGLang load 32-bit models in 16 bits; set float32 or bfloat16")
    # SGLang would use this fraction of all memory for the KV cache; on a CPU max_total_tokens sets the size.
    arguments.pop("mem_fraction_static", None)
    cpu_defaults = {
        "attention_backend": CPU_ATTENTION,
        "max_total_tokens": 65536,
        "sleep_on_idle": True,  # otherwise an idle scheduler uses a whole core
        # There is no second device to overlap with, and overlap computes one extra token per sequence.
        "disable_overlap_schedule": True,
    }
    return arguments | {name: value for name, value in cpu_defaults.items() if not arguments.get(name)}


def _command_line(name: str, value: Any, flags: Mapping[str, Flag]) -> list[str]:
    """One argument in SGLang's command-line syntax; empty if it equals the default."""
    flag = flags.get(name)
    if flag is None:
        near = difflib.get_close_matches(name, flags, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "see the fields of SGLang's ServerArgs"
        raise ValueError(f"servers.args.{name}: {value!r}: the installed SGLang has no argument {name!r}; {hint}")
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
            raise ValueError(f"servers.args.{name}: SGLang's {flag.option} can only be enabled")
        return []
    if flag.kind == "list":
        values = value if isinstance(value, list | tuple) else [value]
        return [flag.option, *map(str, values)] if values else []
    text = json.dumps(value) if isinstance(value, dict | list | bool) else str(value)
    return [f"{flag.option}={text}"]  # "=" allows values that start with a dash
