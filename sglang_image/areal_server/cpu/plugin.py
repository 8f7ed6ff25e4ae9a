"""The SGLang plugin (entry point group sglang.srt.plugins), loaded in each of its processes."""

from __future__ import annotations

import multiprocessing
import os
import time
from typing import Any


def register() -> None:
    """Bind loopback stores; on a CPU also register our attention backend and faster process startup."""
    from areal_server import loopback_stores

    loopback_stores.install()
    if os.environ.get("SGLANG_USE_CPU_ENGINE") != "1":
        return
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.server_args import add_attention_backend_choices

    from areal_server.arguments import CPU_ATTENTION
    from areal_server.cpu.attention import PaddedAttnBackend

    register_attention_backend(CPU_ATTENTION)(PaddedAttnBackend)
    add_attention_backend_choices([CPU_ATTENTION])
    HookRegistry.register("sglang.srt.entrypoints.engine._set_envs_and_config", _fork_children, HookType.AFTER)
    paused_hook = "sglang.srt.managers.scheduler.Scheduler._record_scheduler_state_for_paused_engine"
    HookRegistry.register(paused_hook, _sleep_while_paused, HookType.AFTER)
    HookRegistry.register("sglang.srt.mem_cache.pool_host.common._cuda_host_register", _do_not_pin, HookType.REPLACE)


def _fork_children(result: Any, *args: Any, **kwargs: Any) -> None:
    """Make SGLang fork its processes instead of spawning them.

    SGLang spawns them because CUDA does not survive a fork. Each spawned process imports SGLang again, which takes 10 s
    of CPU time. Without CUDA a fork is safe: the first process has only imported modules so far.
    """
    multiprocessing.set_start_method("fork", force=True)


def _do_not_pin(*args: Any, **kwargs: Any) -> None:
    """Leave host memory unpinned. SGLang pins the buffer of routed experts through CUDA on every device."""


def _sleep_while_paused(result: Any, *args: Any, **kwargs: Any) -> None:
    """Poll for requests every 2 ms while paused. SGLang busy-waits here: --sleep-on-idle does not cover pauses.

    Weights are updated during a pause, and the trainer that sends them needs the CPU.
    """
    time.sleep(0.002)
