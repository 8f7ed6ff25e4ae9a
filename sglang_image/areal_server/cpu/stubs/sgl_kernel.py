"""Stub for SGLang's compiled kernels, which PyPI does not provide for CPUs.

With SGLANG_USE_CPU_ENGINE=1 SGLang imports these names at startup and then computes in torch. All of them implement
speculative decoding or its allocation, which CPU servers do not support here, so every call raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn


def _missing(name: str) -> Callable[..., NoReturn]:
    def kernel(*args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(f"sgl_kernel.{name} needs a GPU; set servers.device: cuda on a machine with one")

    return kernel


assign_draft_cache_locs_contiguous_cpu = _missing("assign_draft_cache_locs_contiguous_cpu")
assign_extend_cache_locs_cpu = _missing("assign_extend_cache_locs_cpu")
assign_req_to_token_pool_cpu = _missing("assign_req_to_token_pool_cpu")
build_tree_kernel_efficient_cpu = _missing("build_tree_kernel_efficient_cpu")
copy_all_layer_kv_cache_cpu = _missing("copy_all_layer_kv_cache_cpu")
fill_accept_out_cache_loc_cpu = _missing("fill_accept_out_cache_loc_cpu")
fill_bonus_tokens_cpu = _missing("fill_bonus_tokens_cpu")
verify_tree_greedy_cpu = _missing("verify_tree_greedy_cpu")
