"""AdamW that keeps its moments in fewer bytes, or in host memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

MOMENTS = ("exp_avg", "exp_avg_sq")


class CompactAdamW(torch.optim.AdamW):
    """Computes as PyTorch's fused AdamW does, in the type and on the device of the parameters.

    Between steps the moments are kept in ``dtype``, and with ``offload`` in host memory. A step converts the moments of
    one parameter at a time, so it needs those of the largest one beside the parameters. Rounding is to the nearest
    value: copies of a parameter on several ranks stay equal.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        dtype: torch.dtype,
        offload: bool,
        **options: Any,
    ) -> None:
        """``options``: those of ``torch.optim.AdamW``."""
        super().__init__(parameters, fused=True, **options)
        self._dtype = dtype
        self._offload = offload

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change the parameters that have a gradient."""
        assert closure is None, "a closure is not supported"
        devices: set[torch.device] = set()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._change(parameter, group)
                        devices.add(parameter.device)
        for device in devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # copies to pinned memory are asynchronous

    def _change(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state, value = self._state_of(parameter), _local(parameter)
        kept = [_local(state[name]) for name in MOMENTS]
        moments = [one.to(value.device, value.dtype, non_blocking=True) for one in kept]
        beta1, beta2 = group["betas"]
        adamw(
            [value],
            [_local(parameter.grad)],
            [moments[0]],
            [moments[1]],
            [],
            [state["step"]],
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )
        for one, moment in zip(kept, moments, strict=True):
            if one is not moment:
                one.copy_(moment, non_blocking=True)

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            place: dict[str, Any] = {"device": "cpu", "pin_memory": parameter.is_cuda} if self._offload else {}
            for name in MOMENTS:
                state[name] = torch.zeros_like(parameter, dtype=self._dtype, requires_grad=False, **place)
        return state


def _local(tensor: Any) -> Tensor:
    """This rank's part of a tensor."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    assert isinstance(local, Tensor)
    return local
