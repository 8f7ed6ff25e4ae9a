"""Attention for SGLang on a CPU: one padded call per batch. SGLang's torch_native makes one call per sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from torch import Tensor

from areal_server.cpu.padding import PaddedGroup, attend, decode_group, extend_group, group_by_length

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class PaddedAttnBackend(TorchNativeAttnBackend):  # type: ignore[misc]
    """SGLang's torch_native backend with batched attention.

    Cases that are not batched use the base class: sliding windows, cross-attention, encoders, head sizes that differ
    between keys and values, and a KV cache whose dtype differs from the activations'.
    """

    def __init__(self, model_runner: Any) -> None:
        super().__init__(model_runner)
        self._dtype: torch.dtype = model_runner.dtype
        self._groups: list[PaddedGroup] = []

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        super().init_forward_metadata(forward_batch)
        self._groups = []
        if forward_batch.encoder_lens is not None or forward_batch.batch_size == 0:
            return
        req_to_token = self.req_to_token_pool.req_to_token
        requests_B, key_lens_B = forward_batch.req_pool_indices, forward_batch.seq_lens
        if forward_batch.forward_mode.is_decode():
            self._groups = [decode_group(req_to_token, requests_B, key_lens_B, self._dtype)]
        elif forward_batch.forward_mode.is_extend() and forward_batch.extend_seq_lens is not None:
            query_lens_B = forward_batch.extend_seq_lens
            starts_B = query_lens_B.cumsum(0) - query_lens_B
            for members in group_by_length(query_lens_B.tolist(), key_lens_B.tolist()):
                i = torch.tensor(members)
                group = extend_group(
                    req_to_token, requests_B[i], query_lens_B[i], key_lens_B[i], starts_B[i], self._dtype
                )
                self._groups.append(group)

    def _can_batch(self, layer: RadixAttention, query: Tensor) -> bool:
        keys = self.token_to_kv_pool.get_key_buffer(layer.layer_id)
        return (
            bool(self._groups)
            and not layer.is_cross_attention
            and layer.attn_type == AttentionType.DECODER
            and (layer.sliding_window_size is None or layer.sliding_window_size < 0)
            and not layer.logit_cap
            and layer.qk_head_dim == layer.v_head_dim
            and query.dtype == keys.dtype == self._dtype
        )

    def _forward(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool,
    ) -> Tensor:
        pool = self.token_to_kv_pool
        if save_kv_cache and k is not None and v is not None:
            pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, self.swa_out_cache_loc), k, v)
        query_QHD = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        out_QHD = torch.empty_like(query_QHD)
        keys, values = pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)
        for group in self._groups:
            attend(group, query_QHD, keys, values, out_QHD, layer.scaling)
        return out_QHD.flatten(1)

    def forward_decode(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
    ) -> Tensor:
        forward = self._forward if self._can_batch(layer, q) else super().forward_decode
        return forward(q, k, v, layer, forward_batch, save_kv_cache)

    def forward_extend(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
    ) -> Tensor:
        forward = self._forward if self._can_batch(layer, q) else super().forward_extend
        return forward(q, k, v, layer, forward_batch, save_kv_cache)
