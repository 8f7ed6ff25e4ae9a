"""oneDNN's linear layers equal PyTorch's in forward and backward passes."""

import copy

import pytest
import torch
from torch import nn

from areal_trainer.model.onednn_linear import onednn_is_faster, use_onednn


@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_equal_those_of_a_linear_layer(bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(24, 40, bias=bias), nn.SiLU(), nn.Linear(40, 8, bias=bias))
    ours = copy.deepcopy(plain)
    use_onednn(ours)
    x, y = (torch.randn(1, 2, 17, 24).requires_grad_() for _ in range(2))
    y.data = x.data.clone()
    plain(x).square().sum().backward()
    ours(y).square().sum().backward()
    torch.testing.assert_close(ours(y), plain(x))
    torch.testing.assert_close(y.grad, x.grad)
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_other_dtypes_fall_back_to_pytorch() -> None:
    layer = nn.Linear(8, 8).to(torch.bfloat16)
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    expected = layer(x)
    use_onednn(layer)
    assert layer(x).equal(expected)


@pytest.mark.parametrize(("vendor", "faster"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_intel_processors_keep_mkl(vendor: str, faster: bool) -> None:
    assert onednn_is_faster(f"processor\t: 0\nvendor_id\t: {vendor}\n") is faster
