"""What SGLang loads into each of its processes by its own plugin mechanism (entry points sglang.srt.plugins)."""

from __future__ import annotations

import multiprocessing
import os
import time
from typing import Any


def register() -> None:
    """Add our attention backend and the quicker start of processes; where SGLang runs on a GPU, do nothing."""
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
    paused = "sglang.srt.managers.scheduler.Scheduler._record_scheduler_state_for_paused_engine"
    HookRegistry.register(paused, _rest_while_paused, HookType.AFTER)


def _fork_children(result: Any, *args: Any, **kwargs: Any) -> None:
    """Let SGLang's processes be forks of its first one.

    SGLang spawns them, for CUDA does not survive a fork; each then imports all of SGLang again, 10 s of CPU time
    apiece. Without CUDA a fork is as good: nothing runs in the first process yet but the import of modules.
    """
    multiprocessing.set_start_method("fork", force=True)


def _rest_while_paused(result: Any, *args: Any, **kwargs: Any) -> None:
    """Look for requests every 2 ms while paused, where SGLang looks without end: --sleep-on-idle leaves that out.

    A pause is when weights are updated, and the trainer that sends them wants the processor.
    """
    time.sleep(0.002)
