"""Linear layers with oneDNN's kernels, for AMD processors.

PyTorch multiplies float32 matrices with MKL, which does not use AVX-512 on non-Intel processors. oneDNN, also part of
PyTorch, does: 190 instead of 85 GFLOP/s on one core of an EPYC. Results differ only by the order of the sums. On a Xeon
MKL is faster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def onednn_is_faster(cpuinfo: str) -> bool:
    """Whether oneDNN is faster than MKL on the processor described by /proc/cpuinfo."""
    return "AuthenticAMD" in cpuinfo


def use_faster_linear(model: nn.Module) -> None:
    """Use oneDNN for the linear layers of a float32 model on the CPU if that is faster."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and onednn_is_faster(cpuinfo.read_text()):
        use_onednn(model)


def use_onednn(model: nn.Module) -> None:
    """Use oneDNN for the linear layers of a float32 model on the CPU, in forward and backward passes."""
    if not torch.backends.mkldnn.is_available():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _OneDNNLinear


def _times_transposed(a: Tensor, b: Tensor) -> Tensor:
    """a · bᵀ over the last dimension."""
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


class _Product(torch.autograd.Function):
    """input · weightᵀ."""

    @staticmethod
    def forward(context: Any, values: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(values, weight)
        return _times_transposed(values, weight)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        gradient = gradients[0]
        values, weight = context.saved_tensors
        for_values, for_weight = context.needs_input_grad
        return (
            _times_transposed(gradient, weight.t()) if for_values else None,
            _times_transposed(gradient.flatten(0, -2).t(), values.flatten(0, -2).t()) if for_weight else None,
        )


class _OneDNNLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or input.dtype != torch.float32:
            return super().forward(input)
        result = _Product.apply(input, self.weight)
        return result if self.bias is None else result + self.bias
