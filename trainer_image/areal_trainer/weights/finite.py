"""Refusal of weights that are NaN or infinite."""

from __future__ import annotations

import torch


class NonFiniteWeightsError(RuntimeError):
    """A weight is NaN or infinite, or too large for the type in which it is written."""


def require_finite(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    """Raise ``NonFiniteWeightsError`` if a floating-point tensor is not finite in ``dtype``."""
    if not tensor.is_floating_point() or not tensor.numel():
        return
    low, high = (float(bound) for bound in torch.aminmax(tensor.detach()))
    limit = torch.finfo(dtype).max
    if not (-limit <= low and high <= limit):  # written so that NaN is refused as well
        raise NonFiniteWeightsError(
            f"{name} holds values from {low:.3g} to {high:.3g}, which are not finite in {dtype}; these weights "
            "are not published"
        )
