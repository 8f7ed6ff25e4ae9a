"""Variable-length attention with its kernel, which only a GPU has, replaced by a loop over its documented meaning."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from areal_api.actor import TrainEngineConfig
from areal_trainer.batch import pack
from areal_trainer.model import attention, language_model, varlen_attention
from areal_trainer.model.attention import SegmentIndex, segment_attention
from areal_trainer.model.layout import Segment
from areal_trainer.model.policy import Policy
from areal_trainer.model.varlen_attention import VarlenIndex
from support.tiny_policy import actor_config, random_trajectories, save_tiny_model

CPU = torch.device("cpu")
MODULE = torch.nn.Module()


def kernel_by_loop(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """Each sequence alone. The last query sees the last key; the window counts tokens to the left of a query's own."""
    assert enable_gqa == (query.shape[1] != key.shape[1])
    out = []
    for s in range(len(cu_seq_q) - 1):
        q = query[cu_seq_q[s] : cu_seq_q[s + 1]]
        k, v = (x[cu_seq_k[s] : cu_seq_k[s + 1]] for x in (key, value))
        assert len(q) <= max_q
        assert len(k) <= max_k
        own_Q = torch.arange(len(q))[:, None] + len(k) - len(q)
        allowed_QK = torch.arange(len(k)) <= own_Q
        if window_size[0] >= 0:
            allowed_QK &= own_Q - torch.arange(len(k)) <= window_size[0]
        mask = torch.zeros(allowed_QK.shape).masked_fill(~allowed_QK, float("-inf"))
        heads = torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)), attn_mask=mask, scale=scale, enable_gqa=enable_gqa
        )
        out.append(heads[0].transpose(0, 1))
    return torch.cat(out)


def policy_of(path: Path, **changes: Any) -> Policy:
    return Policy(actor_config(path, **changes), device="cpu", total_steps=1, seed=1)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen_attention, "varlen_attn", kernel_by_loop)


SEGMENTS = {
    "packed": [Segment(0, 5), Segment(5, 3), Segment(8, 1)],
    "shared prefix": [Segment(0, 4), Segment(4, 3, 0, 4), Segment(7, 2, 0, 4), Segment(9, 6)],
}


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS)
def test_it_equals_attention_segment_by_segment(loop: None, segments: list[Segment], window: int | None) -> None:
    torch.manual_seed(0)
    tokens = sum(segment.length for segment in segments)
    query, key, value = (torch.randn(1, heads, tokens, 8) for heads in (4, 2, 2))
    options: dict[str, Any] = {"scaling": 0.3, "sliding_window": window}
    ours, _ = varlen_attention.varlen_attention(
        MODULE, query, key, value, None, segments=VarlenIndex.of(segments, CPU), **options
    )
    expected, _ = segment_attention(MODULE, query, key, value, None, segments=SegmentIndex.of(segments, CPU), **options)
    torch.testing.assert_close(ours, expected)


def test_nothing_is_gathered_without_a_prefix() -> None:
    index = VarlenIndex.of(SEGMENTS["packed"], CPU)
    assert index.keys_K is None
    assert index.cu_queries.tolist() == index.cu_keys.tolist() == [0, 5, 8, 9]


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (8, {"softcap": 30.0}, "softcap.*set attn_impl: eager"),
        (8, {"dropout": 0.1}, "dropout is 0.1"),
        (12, {}, "heads have size 12.*set attn_impl: sdpa"),
        (264, {}, "heads have size 264"),
    ],
)
def test_what_the_kernel_cannot_compute_is_refused(size: int, options: dict[str, Any], message: str) -> None:
    x = torch.zeros(1, 1, 2, size)
    with pytest.raises(ValueError, match=message):
        varlen_attention.varlen_attention(
            MODULE, x, x, x, None, segments=VarlenIndex.of([Segment(0, 2)], CPU), **options
        )


def test_a_model_has_the_same_logprobs_with_it(loop: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, batch = save_tiny_model(tmp_path), pack(random_trajectories())
    expected = policy_of(path, attn_impl="sdpa").logprobs(batch)
    monkeypatch.setattr(language_model, "attention_implementation", lambda *_: varlen_attention.NAME)
    torch.testing.assert_close(policy_of(path).logprobs(batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["varlen", "flash_attention_2"])
def test_kernels_of_gpus_are_refused_on_the_cpu(tmp_path: Path, implementation: str) -> None:
    with pytest.raises(ValueError, match=f"attn_impl is {implementation}, which needs a GPU; set attn_impl: sdpa"):
        policy_of(save_tiny_model(tmp_path), attn_impl=implementation)


@pytest.mark.parametrize(
    "content", [None, "", "raise OSError('undefined symbol')"], ids=["namespace", "other", "broken"]
)
def test_a_package_that_is_not_flash_attn_2_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    (tmp_path / "flash_attn").mkdir()
    if content is not None:
        (tmp_path / "flash_attn" / "__init__.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    with pytest.raises(ValueError, match=r"flash-attn 2 cannot be imported .*install flash-attn"):
        language_model.require_flash_attention("actor")


def test_flash_attn_2_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("def flash_attn_varlen_func(): ...")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    language_model.require_flash_attention("actor")
    monkeypatch.delitem(sys.modules, "flash_attn")


@pytest.mark.parametrize(
    ("chosen", "dtype", "name"),
    [
        (None, "bfloat16", varlen_attention.NAME),
        (None, "float32", attention.NAME),
        ("sdpa", "bfloat16", attention.NAME),
        ("eager", "bfloat16", "eager"),
    ],
)
def test_a_gpu_uses_pytorchs_kernel_and_sdpa_on_it_never_cudnns(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, dtype: str, name: str
) -> None:
    switched: list[bool] = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", switched.append)
    config = TrainEngineConfig.model_validate({"path": "m", "attn_impl": chosen, "dtype": dtype})
    assert language_model.attention_implementation(config, "actor", torch.device("cuda")) == name
    assert switched == ([False] if name == attention.NAME else [])  # cuDNN compiles a plan for every new shape


def test_both_implementations_have_names_of_their_own() -> None:
    assert set(language_model.SEGMENT_ATTENTIONS) == {attention.NAME, varlen_attention.NAME}
